use crate::{resilience::some_instant, state::instance::capacity::*};

#[test]
fn observed_load_covers_the_last_ten_seconds() {
    let (history, start) = (LoadHistory::default(), some_instant());
    let sample = |second: u32| LoadSample {
        at: start + Duration::from_secs(second.into()),
        requests_started: u64::from(second) * 50,
        in_flight: if second == 3 { 99 } else { 4 },
        max_utilization: 0.5,
    };
    let idle = LoadSample {
        requests_started: 0,
        in_flight: 0,
        max_utilization: 0.0,
        ..sample(0)
    };
    assert_eq!(
        history.observed_load(idle, None),
        ObservedLoad {
            peak_in_flight: 0,
            mean_in_flight: 0.0,
            requests_per_second: 0.0,
            limit: None,
            max_utilization: 0.0
        }
    );
    (0..19).for_each(|second| history.record(sample(second)));
    for _ in 0..100 {
        assert_eq!(
            history.observed_load(sample(19), Some(8)),
            ObservedLoad {
                peak_in_flight: 4,
                mean_in_flight: 4.0,
                requests_per_second: 50.0,
                limit: Some(8),
                max_utilization: 0.5
            }
        );
    }
    assert_eq!(
        history.samples.lock().len(),
        11,
        "who asks leaves nothing behind"
    );
}
