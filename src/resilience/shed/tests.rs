use crate::resilience::{shed::*, some_instant};

fn percent(percent: f64) -> Option<Ratio> {
    Some(Ratio::from_percent(percent).expect("a percentage"))
}

fn protection() -> OverloadProtection {
    OverloadProtection::new(ProtectionConfig {
        cpu: Some(SignalThresholds {
            warning: percent(70.0),
            critical: percent(90.0),
        }),
        ..ProtectionConfig::default()
    })
}

/// Records `value` once per second in the range and returns each change with its second.
fn hold_signal(
    protection: &mut OverloadProtection,
    value: f64,
    seconds: std::ops::Range<u64>,
    start: Instant,
) -> Vec<(u64, OverloadLevel)> {
    seconds
        .filter_map(|second| {
            protection
                .record_signal(
                    OverloadSignal::Cpu,
                    value,
                    start + Duration::from_secs(second),
                )
                .map(|change| (second, change.to))
        })
        .collect()
}

#[test]
fn a_level_is_entered_after_10_s_at_the_threshold_and_left_after_30_s_below_90_percent_of_it() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(
        hold_signal(&mut protection, 0.70, 0..20, start),
        [(10, OverloadLevel::Warning)],
        "the bound itself counts"
    );
    assert_eq!(
        hold_signal(&mut protection, 0.64, 20..100, start),
        [],
        "below, and not well below"
    );
    assert_eq!(
        hold_signal(&mut protection, 0.62, 100..140, start),
        [(130, OverloadLevel::Normal)]
    );
}

#[test]
fn short_peaks_and_dips_do_not_change_the_level() {
    let (mut protection, start) = (protection(), some_instant());
    for round in 0..10 {
        assert_eq!(
            hold_signal(&mut protection, 1.0, round * 20..round * 20 + 10, start),
            []
        );
        assert_eq!(
            hold_signal(
                &mut protection,
                0.1,
                round * 20 + 10..round * 20 + 20,
                start
            ),
            []
        );
    }
    assert_eq!(
        hold_signal(&mut protection, 0.95, 200..220, start),
        [(210, OverloadLevel::Critical)],
        "both at once: the higher one"
    );
    assert_eq!(hold_signal(&mut protection, 0.1, 220..245, start), []);
    assert_eq!(hold_signal(&mut protection, 0.95, 245..250, start), []);
    assert_eq!(
        hold_signal(&mut protection, 0.1, 250..300, start),
        [(280, OverloadLevel::Normal)]
    );
}

#[test]
fn levels_are_left_one_at_a_time() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(
        hold_signal(&mut protection, 0.92, 0..11, start),
        [(10, OverloadLevel::Critical)]
    );
    assert_eq!(
        hold_signal(&mut protection, 0.75, 11..60, start),
        [(41, OverloadLevel::Warning)],
        "below nine tenths of the one, above the other"
    );
    assert_eq!(protection.level(), OverloadLevel::Warning);
}

#[test]
fn a_signal_without_thresholds_has_no_level() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(
        protection.record_signal(OverloadSignal::Memory, 1.0, start),
        None
    );
    assert_eq!(protection.last_reading(OverloadSignal::Memory), None);
    assert_eq!(
        hold_signal(&mut protection, 0.95, 0..11, start),
        [(10, OverloadLevel::Critical)]
    );
    protection.reconfigure(ProtectionConfig::default());
    assert_eq!(protection.level(), OverloadLevel::Normal);
}

#[test]
fn the_lowest_class_is_shed_first_and_the_two_highest_never() {
    let refused =
        |level, random| PriorityClass::ALL.map(|class| class.is_shed_at(level, 0.3, random));
    assert_eq!(refused(OverloadLevel::Normal, 0.0), [false; 4]);
    assert_eq!(
        refused(OverloadLevel::Warning, 0.0),
        [false, false, false, true]
    );
    assert_eq!(
        refused(OverloadLevel::Critical, 0.29),
        [false, false, true, true]
    );
    assert_eq!(
        refused(OverloadLevel::Critical, 0.3),
        [false, false, false, true]
    );
}

#[test]
fn the_shed_ratio_rises_while_a_signal_is_critical_and_falls_at_half_that_rate() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(shed_percent_after_one_second(&mut protection), 0);
    assert_eq!(
        hold_signal(&mut protection, 0.95, 0..11, start),
        [(10, OverloadLevel::Critical)]
    );
    let shares: Vec<i64> = (0..12)
        .map(|_| shed_percent_after_one_second(&mut protection))
        .collect();
    assert_eq!(shares, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100, 100]);
    assert_eq!(
        hold_signal(&mut protection, 0.85, 11..12, start),
        [],
        "not well below, and no longer at it"
    );
    assert_eq!(
        [
            shed_percent_after_one_second(&mut protection),
            shed_percent_after_one_second(&mut protection)
        ],
        [95, 90]
    );
    (0..100).for_each(|_| protection.advance_one_second());
    assert_eq!(
        shed_percent_after_one_second(&mut protection),
        10,
        "not below the first step before the level is left"
    );
    assert_eq!(
        hold_signal(&mut protection, 0.1, 12..50, start).last(),
        Some(&(42, OverloadLevel::Normal))
    );
    assert_eq!(shed_percent_after_one_second(&mut protection), 0);
}

fn shed_percent_after_one_second(protection: &mut OverloadProtection) -> i64 {
    protection.advance_one_second();
    #[expect(clippy::cast_possible_truncation, reason = "a percentage")]
    let percent = (protection.shed_ratio() * 100.0).round() as i64;
    percent
}

#[test]
fn a_signal_without_readings_has_no_level() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(protection.clear_signal(OverloadSignal::Cpu), None);
    assert_eq!(
        hold_signal(&mut protection, 0.95, 0..11, start),
        [(10, OverloadLevel::Critical)]
    );
    assert_eq!(protection.cause(), Some(OverloadSignal::Cpu));
    assert_eq!(
        protection.clear_signal(OverloadSignal::Cpu).map(|change| (
            change.from,
            change.to,
            change.value
        )),
        Some((OverloadLevel::Critical, OverloadLevel::Normal, None))
    );
    assert_eq!(
        (protection.level(), protection.cause()),
        (OverloadLevel::Normal, None)
    );
}

/// Compares the level with a naive model that keeps all readings.
///
/// The model turns on after 10 s at or above the threshold and off after 30 s well below it.
#[test]
fn the_level_agrees_with_a_list_of_all_readings() {
    let mut seed = 7_u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % 100
    };
    for _ in 0..50 {
        let (mut protection, start) = (protection(), some_instant());
        let (mut readings, mut is_on, mut since): (Vec<f64>, bool, usize) = (Vec::new(), false, 0);
        for second in 0..400_usize {
            // Long runs of one value ensure that levels are entered and left.
            let value = if second > 0 && next() < 93 {
                readings[second - 1]
            } else {
                [0.1, 0.62, 0.64, 0.7, 0.8][usize::try_from(next() % 5).expect("small")]
            };
            readings.push(value);
            _ = protection.record_signal(
                OverloadSignal::Cpu,
                value,
                start + Duration::from_secs(second as u64),
            );
            let required: usize = if is_on { 30 } else { 10 };
            let is_past_threshold = |value: f64| if is_on { value < 0.63 } else { value >= 0.7 };
            if second >= since + required
                && readings[second - required..=second]
                    .iter()
                    .all(|value| is_past_threshold(*value))
            {
                (is_on, since) = (!is_on, second + 1);
            }
            assert_eq!(
                protection.level() == OverloadLevel::Warning,
                is_on,
                "second {second}: {:?}",
                &readings[second.saturating_sub(31)..]
            );
        }
    }
}

#[test]
fn each_class_may_use_its_share_of_a_limit() {
    for (limit, expected) in [
        (100, [100, 90, 75, 60]),
        (10, [10, 9, 7, 6]),
        (1, [1, 1, 1, 1]),
        (
            u32::MAX,
            [u32::MAX, 3_865_470_565, 3_221_225_471, 2_576_980_377],
        ),
    ] {
        let limit = NonZeroU32::new(limit).expect("not zero");
        assert_eq!(
            PriorityClass::ALL.map(|class| class.max_permits(limit).get()),
            expected
        );
    }
}
