use crate::control::memory_limit::*;

/// Creates a directory with the given files in place of the mounted hierarchies.
fn write_hierarchy(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let root = std::env::temp_dir().join(format!("outrigger-memory-{name}-{}", std::process::id()));
    for (file, text) in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    root
}

#[test]
fn the_limit_is_the_lowest_of_the_own_cgroup_and_its_parents_in_both_versions() {
    let root = write_hierarchy(
        "both",
        &[
            ("pod/memory.max", "1000\n"),
            ("pod/app/memory.max", "max\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/pod/memory.limit_in_bytes", "600\n"),
        ],
    );
    for (own_cgroups, expected) in [
        ("0::/pod/app\n", Some(1_000)),
        ("0::/\n", None),
        ("4:memory:/pod\n0::/pod\n", Some(600)),
        ("4:memory:/\n", None),
        // The path of the host is not mounted in the container.
        ("4:cpu,memory:/kubepods/pod1\n", None),
        ("3:cpu:/pod\n", None),
        ("nonsense\n", None),
        ("", None),
    ] {
        assert_eq!(
            memory_limit(own_cgroups, &root),
            expected,
            "{own_cgroups:?}"
        );
    }
    fs::remove_dir_all(root).expect("it is there");
}

#[test]
fn a_container_without_a_cgroup_namespace_finds_its_limit_at_the_root() {
    let root = write_hierarchy("root", &[("memory/memory.limit_in_bytes", "64\n")]);
    assert_eq!(memory_limit("4:memory:/kubepods/pod1\n", &root), Some(64));
    fs::remove_dir_all(root).expect("it is there");
}
