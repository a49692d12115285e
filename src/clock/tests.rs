use crate::clock::*;

#[test]
fn times_are_written_as_rfc_3339() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (1_794_960_000, "2026-11-18T00:00:00.000Z"),
        (4_107_542_399, "2100-02-28T23:59:59.000Z"),
    ] {
        assert_eq!(
            Rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(),
            expected
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_future_that_exceeds_its_timeout_is_dropped() {
    assert_eq!(
        timeout(Some(Duration::from_secs(1)), std::future::pending::<()>()).await,
        Err(Elapsed)
    );
    assert_eq!(
        timeout_at(
            Some(now() + Duration::from_secs(1)),
            std::future::pending::<()>()
        )
        .await,
        Err(Elapsed)
    );
    assert_eq!(timeout(None, async { 1 }).await, Ok(1));
}

#[test]
fn the_formatter_of_timestamps_is_exact_across_the_end_of_a_second() {
    let mut formatter = TimestampFormatter::default();
    for millis in [0, 7, 999, 1_000, 1_050, 500, 86_400_123] {
        let time = UNIX_EPOCH + Duration::from_millis(millis);
        assert_eq!(formatter.format(time), Rfc3339(time).to_string());
    }
}
