//! Whether the others can carry the load when this instance leaves.
//!
//! It is assumed that the load is spread evenly over the replicas, which is what a balancer is for: each of those that stay then gets
//! its part of what this one has now. What a replica can carry is what its concurrency limit lets in, be it written or learned; the
//! rate that belongs to it follows from how long a request takes now (Little's law: in flight = rate x time).

/// What an instance has to do, over the last seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Present {
    /// The most requests in flight at once.
    pub peak_in_flight: u32,
    /// Requests in flight on average.
    pub mean_in_flight: f64,
    /// Requests in a second.
    pub rate: f64,
    /// Requests that may be in flight at once under all limits together, if every way in has one.
    pub limit: Option<u32>,
    /// The part of any single limit that was taken at its fullest; above 1 after a limit has fallen.
    pub fullest: f64,
}

/// What is to be expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Nobody knows how many replicas there are.
    UnknownReplicas,
    /// No other replica is there.
    Alone,
    /// No limit says what a replica can carry.
    UnknownLimit,
    /// The others can carry it.
    Enough,
    /// They cannot.
    TooLittle,
}

impl Verdict {
    /// Whether it is safe to leave.
    #[must_use]
    pub fn is_enough(self) -> bool {
        self == Self::Enough
    }
}

/// How it would be without this instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// Replicas that stay, if that is known.
    pub staying: Option<u32>,
    /// The part of the capacity that stays, in `0.0..=1.0`.
    pub share: f64,
    /// Requests in flight at each of the others at its peak.
    pub in_flight_each: f64,
    /// Requests a second at each of the others.
    pub rate_each: f64,
    /// Requests a second that a replica can carry, if that is known.
    pub rate_limit_each: Option<f64>,
    /// Whether the others can carry it.
    pub verdict: Verdict,
}

/// What is to be expected when this instance leaves and so many others stay.
#[must_use]
pub fn without_this(present: &Present, staying: Option<u32>) -> Forecast {
    let others = staying.map_or(0.0, f64::from);
    let growth = if others > 0.0 {
        (others + 1.0) / others
    } else {
        f64::INFINITY
    };
    // Nothing times anything is nothing, also when nobody is left to do it.
    let each = |here: f64| if here > 0.0 { here * growth } else { 0.0 };
    let in_flight_each = each(present.peak_in_flight.into());
    let verdict = match (staying, present.limit) {
        (None, _) => Verdict::UnknownReplicas,
        (Some(0), _) => Verdict::Alone,
        (Some(_), None) => Verdict::UnknownLimit,
        // One limit that is full does not care about others that are empty.
        (Some(_), Some(_)) if each(present.fullest) <= 1.0 => Verdict::Enough,
        (Some(_), Some(_)) => Verdict::TooLittle,
    };
    let rate_limit_each = present
        .limit
        .filter(|_| present.mean_in_flight > 0.0)
        .map(|limit| f64::from(limit) * present.rate / present.mean_in_flight);
    Forecast {
        staying,
        share: others / (others + 1.0),
        in_flight_each,
        rate_each: each(present.rate),
        rate_limit_each,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(peak: u32, limit: Option<u32>) -> Present {
        let fullest = limit.map_or(0.0, |limit| f64::from(peak) / f64::from(limit));
        Present {
            peak_in_flight: peak,
            mean_in_flight: f64::from(peak) / 2.0,
            rate: 100.0,
            limit,
            fullest,
        }
    }

    #[test]
    fn the_others_get_their_part_of_what_is_here() {
        let table = [
            (
                10,
                Some(64),
                None,
                Verdict::UnknownReplicas,
                0.0,
                f64::INFINITY,
            ),
            (10, Some(64), Some(0), Verdict::Alone, 0.0, f64::INFINITY),
            (10, None, Some(2), Verdict::UnknownLimit, 2.0 / 3.0, 15.0),
            (10, Some(15), Some(2), Verdict::Enough, 2.0 / 3.0, 15.0),
            (10, Some(14), Some(2), Verdict::TooLittle, 2.0 / 3.0, 15.0),
            (10, Some(20), Some(1), Verdict::Enough, 0.5, 20.0),
            (0, Some(1), Some(1), Verdict::Enough, 0.5, 0.0),
        ];
        for (peak, limit, staying, verdict, share, each) in table {
            let forecast = without_this(&present(peak, limit), staying);
            assert_eq!(forecast.verdict, verdict, "{peak} {limit:?} {staying:?}");
            assert!(
                (forecast.share - share).abs() < 1e-9
                    && (forecast.in_flight_each.total_cmp(&each).is_eq()),
                "{forecast:?}"
            );
        }
    }

    #[test]
    fn one_limit_that_is_full_decides_however_empty_the_others_are() {
        let crowded = Present {
            fullest: 0.95,
            ..present(19, Some(520))
        };
        assert_eq!(without_this(&crowded, Some(1)).verdict, Verdict::TooLittle);
        assert_eq!(
            without_this(
                &Present {
                    fullest: 0.5,
                    ..crowded
                },
                Some(1)
            )
            .verdict,
            Verdict::Enough
        );
    }

    #[test]
    fn what_a_replica_can_carry_follows_from_how_long_a_request_takes() {
        let forecast = without_this(&present(10, Some(50)), Some(2));
        assert_eq!(
            (forecast.rate_each, forecast.rate_limit_each),
            (150.0, Some(1_000.0)),
            "5 in flight at 100 a second are 50 ms each"
        );
        let idle = Present {
            peak_in_flight: 0,
            mean_in_flight: 0.0,
            rate: 0.0,
            limit: Some(8),
            fullest: 0.0,
        };
        assert_eq!(without_this(&idle, Some(1)).rate_limit_each, None);
    }
}
