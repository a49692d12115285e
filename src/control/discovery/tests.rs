use crate::control::discovery::read_until_stable;

#[tokio::test(start_paused = true)]
async fn a_file_is_read_once_its_content_is_stable() {
    let mut readings = [
        "- 10.0.0.1:80",
        "- 10.0.0.1:8080\n",
        "- 10.0.0.1:8080\n- 10",
        "- 10.0.0.1:8080\n- 10.0.0.2:8080\n",
        "- 10.0.0.1:8080\n- 10.0.0.2:8080\n",
    ]
    .into_iter();
    assert_eq!(
        read_until_stable(|| readings.next()).await,
        Some("- 10.0.0.1:8080\n- 10.0.0.2:8080\n")
    );
}
