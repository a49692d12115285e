use super::*;
use crate::resilience::some_instant;

fn percent(percent: f64) -> Option<Ratio> {
    Some(Ratio::from_percent(percent).expect("a percentage"))
}

fn protection() -> Protection {
    Protection::new(ProtectionConfig {
        cpu: Some(Levels {
            warning: percent(70.0),
            critical: percent(90.0),
        }),
        ..ProtectionConfig::default()
    })
}

/// Says the value each second, from one second to before another; the changes with their seconds.
fn say(
    protection: &mut Protection,
    value: f64,
    seconds: std::ops::Range<u64>,
    start: Instant,
) -> Vec<(u64, Level)> {
    seconds
        .filter_map(|second| {
            protection
                .note(Signal::Cpu, value, start + Duration::from_secs(second))
                .map(|change| (second, change.to))
        })
        .collect()
}

#[test]
fn a_level_is_reached_after_ten_seconds_and_left_after_thirty_well_below() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(
        say(&mut protection, 0.70, 0..20, start),
        [(10, Level::Warning)],
        "the bound itself counts"
    );
    assert_eq!(
        say(&mut protection, 0.64, 20..100, start),
        [],
        "below, and not well below"
    );
    assert_eq!(
        say(&mut protection, 0.62, 100..140, start),
        [(130, Level::Calm)]
    );
}

#[test]
fn a_peak_and_a_dip_change_nothing() {
    let (mut protection, start) = (protection(), some_instant());
    for round in 0..10 {
        assert_eq!(
            say(&mut protection, 1.0, round * 20..round * 20 + 10, start),
            []
        );
        assert_eq!(
            say(
                &mut protection,
                0.1,
                round * 20 + 10..round * 20 + 20,
                start
            ),
            []
        );
    }
    assert_eq!(
        say(&mut protection, 0.95, 200..220, start),
        [(210, Level::Critical)],
        "both at once: the higher one"
    );
    assert_eq!(say(&mut protection, 0.1, 220..245, start), []);
    assert_eq!(say(&mut protection, 0.95, 245..250, start), []);
    assert_eq!(
        say(&mut protection, 0.1, 250..300, start),
        [(280, Level::Calm)]
    );
}

#[test]
fn levels_are_left_one_after_the_other() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(
        say(&mut protection, 0.92, 0..11, start),
        [(10, Level::Critical)]
    );
    assert_eq!(
        say(&mut protection, 0.75, 11..60, start),
        [(41, Level::Warning)],
        "below nine tenths of the one, above the other"
    );
    assert_eq!(protection.level(), Level::Warning);
}

#[test]
fn what_is_not_watched_says_nothing_and_what_is_no_longer_watched_holds_nothing() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(protection.note(Signal::Memory, 1.0, start), None);
    assert_eq!(protection.signal(Signal::Memory), None);
    assert_eq!(
        say(&mut protection, 0.95, 0..11, start),
        [(10, Level::Critical)]
    );
    protection.reconfigure(ProtectionConfig::default());
    assert_eq!(protection.level(), Level::Calm);
}

#[test]
fn the_lowest_are_refused_first_and_the_two_highest_by_no_signal() {
    let refused = |level, random| Class::ALL.map(|class| class.is_refused_at(level, 0.3, random));
    assert_eq!(refused(Level::Calm, 0.0), [false; 4]);
    assert_eq!(refused(Level::Warning, 0.0), [false, false, false, true]);
    assert_eq!(refused(Level::Critical, 0.29), [false, false, true, true]);
    assert_eq!(refused(Level::Critical, 0.3), [false, false, false, true]);
}

#[test]
fn the_share_rises_while_it_is_bad_and_falls_at_half_the_pace() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(percent_after(&mut protection), 0);
    assert_eq!(
        say(&mut protection, 0.95, 0..11, start),
        [(10, Level::Critical)]
    );
    let shares: Vec<i64> = (0..12).map(|_| percent_after(&mut protection)).collect();
    assert_eq!(shares, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100, 100]);
    assert_eq!(
        say(&mut protection, 0.85, 11..12, start),
        [],
        "not well below, and no longer at it"
    );
    assert_eq!(
        [
            percent_after(&mut protection),
            percent_after(&mut protection)
        ],
        [95, 90]
    );
    (0..100).for_each(|_| protection.advance());
    assert_eq!(
        percent_after(&mut protection),
        10,
        "not below the first step before the level is left"
    );
    assert_eq!(
        say(&mut protection, 0.1, 12..50, start).last(),
        Some(&(42, Level::Calm))
    );
    assert_eq!(percent_after(&mut protection), 0);
}

fn percent_after(protection: &mut Protection) -> i64 {
    protection.advance();
    #[expect(clippy::cast_possible_truncation, reason = "a percentage")]
    let percent = (protection.share() * 100.0).round() as i64;
    percent
}

#[test]
fn a_signal_that_falls_silent_holds_nothing() {
    let (mut protection, start) = (protection(), some_instant());
    assert_eq!(protection.silence(Signal::Cpu), None);
    assert_eq!(
        say(&mut protection, 0.95, 0..11, start),
        [(10, Level::Critical)]
    );
    assert_eq!(protection.cause(), Some(Signal::Cpu));
    assert_eq!(
        protection
            .silence(Signal::Cpu)
            .map(|change| (change.from, change.to, change.value)),
        Some((Level::Critical, Level::Calm, None))
    );
    assert_eq!(
        (protection.level(), protection.cause()),
        (Level::Calm, None)
    );
}

/// Against the rule as it is said: on after so long at or above, off after so long well below, and nothing else changes it.
#[test]
fn a_level_is_what_a_list_of_all_that_was_said_makes_it() {
    let mut seed = 7_u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % 100
    };
    for _ in 0..50 {
        let (mut protection, start) = (protection(), some_instant());
        let (mut said, mut is_on, mut since): (Vec<f64>, bool, usize) = (Vec::new(), false, 0);
        for second in 0..400_usize {
            // Long stretches of one value, so that levels are reached and left.
            let value = if second > 0 && next() < 93 {
                said[second - 1]
            } else {
                [0.1, 0.62, 0.64, 0.7, 0.8][usize::try_from(next() % 5).expect("small")]
            };
            said.push(value);
            _ = protection.note(
                Signal::Cpu,
                value,
                start + Duration::from_secs(second as u64),
            );
            let long: usize = if is_on { 30 } else { 10 };
            let is_other = |value: f64| if is_on { value < 0.63 } else { value >= 0.7 };
            if second >= since + long
                && said[second - long..=second]
                    .iter()
                    .all(|value| is_other(*value))
            {
                (is_on, since) = (!is_on, second + 1);
            }
            assert_eq!(
                protection.level() == Level::Warning,
                is_on,
                "second {second}: {:?}",
                &said[second.saturating_sub(31)..]
            );
        }
    }
}

#[test]
fn each_class_fills_a_limit_only_so_far() {
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
            Class::ALL.map(|class| class.places_of(limit).get()),
            expected
        );
    }
}
