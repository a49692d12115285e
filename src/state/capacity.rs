//! What this instance has to do, over the last seconds, and whether the others could do it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{State, live::Live};
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
}

impl Pulse {
    /// Takes note of what is going on.
    pub fn feel(&self, begun: u64, in_flight: usize, now: Instant) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|sample| now.saturating_duration_since(sample.at) <= WINDOW);
        samples.push_back(Sample { at: now, begun, in_flight: u32::try_from(in_flight).unwrap_or(u32::MAX) });
    }

    /// What was going on.
    fn present(&self, limit: Option<u32>) -> Present {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let in_flight = samples.iter().map(|sample| sample.in_flight);
        let count = u32::try_from(samples.len()).unwrap_or(u32::MAX).max(1);
        let sum: f64 = in_flight.clone().map(f64::from).sum();
        let rate = samples.front().zip(samples.back()).map_or(0.0, |(first, last)| {
            let seconds = last.at.saturating_duration_since(first.at).as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "requests of ten seconds are far below 2^52")]
            let begun = last.begun.saturating_sub(first.begun) as f64;
            if seconds > 0.0 { begun / seconds } else { 0.0 }
        });
        Present { peak_in_flight: in_flight.max().unwrap_or(0), mean_in_flight: sum / f64::from(count), rate, limit }
    }
}

/// What was going on here, and what is to be expected when this instance leaves.
#[must_use]
pub fn forecast(state: &State, now: Instant) -> (Present, Forecast) {
    let live = state.live.load();
    state.pulse.feel(state.departure.begun(), state.departure.load().inbound.in_flight, now);
    let present = state.pulse.present(limit(&live));
    (present, capacity::without_this(&present, state.replicas.others(&live)))
}

/// How many requests of callers may be in flight at once; nothing if there is a way in without a limit.
fn limit(live: &Live) -> Option<u32> {
    let inbound = live.routes.iter().filter(|route| route.spec.direction == Direction::Inbound).flat_map(|route| &route.destinations);
    let limits: Option<Vec<_>> = inbound.map(|to| to.limit.as_ref()).collect();
    let mut limits = limits?;
    // Destinations may share one.
    limits.sort_by(|a, b| a.name().cmp(b.name()));
    limits.dedup_by(|a, b| a.name() == b.name());
    (!limits.is_empty()).then(|| limits.iter().fold(0, |sum: u32, limit| sum.saturating_add(limit.snapshot().config.max_in_flight.get())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::some_instant;

    #[test]
    fn rates_and_peaks_are_those_of_the_last_ten_seconds() {
        let (pulse, start) = (Pulse::default(), some_instant());
        assert_eq!(pulse.present(None), Present { peak_in_flight: 0, mean_in_flight: 0.0, rate: 0.0, limit: None });
        for second in 0..20_u32 {
            let in_flight = if second == 3 { 99 } else { 4 };
            pulse.feel(u64::from(second) * 50, in_flight, start + Duration::from_secs(second.into()));
        }
        assert_eq!(pulse.present(Some(8)), Present { peak_in_flight: 4, mean_in_flight: 4.0, rate: 50.0, limit: Some(8) });
    }
}
