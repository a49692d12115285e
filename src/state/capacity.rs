//! What this instance has to do, over the last seconds, and whether the others could do it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{State, limit::LimitState, live::Live};
use crate::{
    policy::document::Direction,
    resilience::capacity::{self, Forecast, Present},
};

/// How long is looked back.
const WINDOW: Duration = Duration::from_secs(10);

/// What was going on at times.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Guards single reads and writes.
    samples: Mutex<VecDeque<Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    /// Requests of callers that ever began.
    begun: u64,
    in_flight: u32,
    /// The part of the fullest limit that is taken.
    fullest: f64,
}

impl Pulse {
    /// Takes note of what is going on.
    fn feel(&self, now: Sample) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|sample| now.at.saturating_duration_since(sample.at) <= WINDOW);
        samples.push_back(now);
    }

    /// What was going on until now. It leaves nothing behind, however often it is asked.
    fn present(&self, now: Sample, limit: Option<u32>) -> Present {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = || {
            samples
                .iter()
                .copied()
                .filter(|sample| now.at.saturating_duration_since(sample.at) <= WINDOW)
                .chain([now])
        };
        let in_flight = || recent().map(|sample| sample.in_flight);
        let count = u32::try_from(recent().count()).unwrap_or(u32::MAX);
        let rate = recent().next().map_or(0.0, |first| {
            let seconds = now.at.saturating_duration_since(first.at).as_secs_f64();
            #[expect(
                clippy::cast_precision_loss,
                reason = "requests of ten seconds are far below 2^52"
            )]
            let begun = now.begun.saturating_sub(first.begun) as f64;
            if seconds > 0.0 { begun / seconds } else { 0.0 }
        });
        Present {
            peak_in_flight: in_flight().max().unwrap_or(0),
            mean_in_flight: in_flight().map(f64::from).sum::<f64>() / f64::from(count),
            rate,
            limit,
            fullest: recent().map(|sample| sample.fullest).fold(0.0, f64::max),
        }
    }
}

/// Takes note of what is going on.
pub fn feel(state: &State, now: Instant) {
    let limits = limits(&state.live.load()).unwrap_or_default();
    state.pulse.feel(sample(state, &limits, now));
}

/// What was going on here, and what is to be expected when this instance leaves.
#[must_use]
pub fn forecast(state: &State, now: Instant) -> (Present, Forecast) {
    let live = state.live.load();
    let limits = limits(&live);
    let limit = limits.as_ref().map(|limits| {
        limits
            .iter()
            .fold(0, |sum: u32, limit| sum.saturating_add(limit.max))
    });
    let present = state
        .pulse
        .present(sample(state, &limits.unwrap_or_default(), now), limit);
    (
        present,
        capacity::without_this(&present, state.replicas.others(&live)),
    )
}

fn sample(state: &State, limits: &[Limit], at: Instant) -> Sample {
    let in_flight = u32::try_from(state.departure.load().inbound.in_flight).unwrap_or(u32::MAX);
    let fullest = limits
        .iter()
        .map(|limit| f64::from(limit.in_flight) / f64::from(limit.max))
        .fold(0.0, f64::max);
    Sample {
        at,
        begun: state.departure.begun(),
        in_flight,
        fullest,
    }
}

/// A limit of requests of callers.
struct Limit {
    in_flight: u32,
    max: u32,
}

/// All of them; nothing if there is a way in without one.
fn limits(live: &Live) -> Option<Vec<Limit>> {
    let inbound = live
        .routes
        .iter()
        .filter(|route| route.spec.direction == Direction::Inbound)
        .flat_map(|route| &route.destinations);
    let limits: Option<Vec<_>> = inbound.map(|to| to.limit.as_ref()).collect();
    let mut limits = limits?;
    // Destinations may share one.
    limits.sort_by(|a, b| a.name().cmp(b.name()));
    limits.dedup_by(|a, b| a.name() == b.name());
    let of = |limit: &LimitState| {
        let snapshot = limit.snapshot();
        Limit {
            in_flight: snapshot.in_flight,
            max: snapshot.config.max_in_flight.get(),
        }
    };
    (!limits.is_empty()).then(|| limits.into_iter().map(|limit| of(limit)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    #[test]
    fn rates_and_peaks_are_those_of_the_last_ten_seconds() {
        let (pulse, start) = (Pulse::default(), some_instant());
        let sample = |second: u32| Sample {
            at: start + Duration::from_secs(second.into()),
            begun: u64::from(second) * 50,
            in_flight: if second == 3 { 99 } else { 4 },
            fullest: 0.5,
        };
        let nothing = Sample {
            begun: 0,
            in_flight: 0,
            fullest: 0.0,
            ..sample(0)
        };
        assert_eq!(
            pulse.present(nothing, None),
            Present {
                peak_in_flight: 0,
                mean_in_flight: 0.0,
                rate: 0.0,
                limit: None,
                fullest: 0.0
            }
        );
        (0..19).for_each(|second| pulse.feel(sample(second)));
        for _ in 0..100 {
            assert_eq!(
                pulse.present(sample(19), Some(8)),
                Present {
                    peak_in_flight: 4,
                    mean_in_flight: 4.0,
                    rate: 50.0,
                    limit: Some(8),
                    fullest: 0.5
                }
            );
        }
        assert_eq!(
            pulse.samples.lock().expect("nobody panicked").len(),
            11,
            "who asks leaves nothing behind"
        );
    }
}
