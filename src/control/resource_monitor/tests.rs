use crate::control::resource_monitor::*;

/// Creates a directory with the given files in place of a cgroup.
fn write_cgroup_files(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let directory =
        std::env::temp_dir().join(format!("outrigger-cgroup-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    for (name, text) in files {
        fs::write(directory.join(name), text).expect("a file");
    }
    directory
}

#[test]
fn cpu_utilization_is_the_usage_since_the_last_sample_over_the_quota() {
    let directory = write_cgroup_files(
        "cpu",
        &[
            ("cpu.stat", "usage_usec 1000000\nuser_usec 1\n"),
            ("cpu.max", "50000 100000\n"),
        ],
    );
    let (start, mut last_cpu_sample) = (clock::now(), None);
    assert_eq!(
        cpu_utilization(&directory, &mut last_cpu_sample, start).ok(),
        Some(None),
        "one look says nothing"
    );
    fs::write(directory.join("cpu.stat"), "usage_usec 1400000\n").expect("a file");
    let share = cpu_utilization(
        &directory,
        &mut last_cpu_sample,
        start + Duration::from_secs(1),
    )
    .ok()
    .flatten()
    .expect("a share");
    assert!(
        (share - 0.8).abs() < 1e-9,
        "0.4 s of half a CPU in a second: {share}"
    );
    fs::remove_dir_all(directory).expect("it is there");
}

#[test]
fn memory_utilization_excludes_reclaimable_memory_and_requires_a_limit() {
    let directory = write_cgroup_files(
        "memory",
        &[
            ("memory.current", "800\n"),
            ("memory.max", "1000\n"),
            ("memory.stat", "anon 1\ninactive_file 300\n"),
        ],
    );
    assert_eq!(memory_utilization(&directory).ok(), Some(Some(0.5)));
    fs::write(directory.join("memory.max"), "max\n").expect("a file");
    assert_eq!(memory_utilization(&directory).ok(), Some(None));
    fs::remove_dir_all(directory).expect("it is there");
    assert!(memory_utilization(Path::new("/nowhere")).is_err());
}

#[test]
fn pressure_share_reads_the_ten_second_average() {
    let text = "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00 avg60=0.00 \
                avg300=0.00 total=1\n";
    let directory = write_cgroup_files(
        "pressure",
        &[("cpu.pressure", text), ("memory.pressure", "nonsense")],
    );
    assert_eq!(
        pressure_share(&directory.join("cpu.pressure")).ok(),
        Some(0.125)
    );
    assert!(pressure_share(&directory.join("memory.pressure")).is_err());
    fs::remove_dir_all(directory).expect("it is there");
}

#[test]
fn a_cpu_quota_is_parsed_as_a_number_of_cpus() {
    for (text, expected) in [
        ("50000 100000\n", Some(0.5)),
        ("200000 100000", Some(2.0)),
        ("max 100000", None),
        ("", None),
        ("0 0", None),
    ] {
        assert_eq!(parse_cpu_quota(text), expected, "{text:?}");
    }
}
