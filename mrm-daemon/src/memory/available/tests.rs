use super::*;
use std::fs::{create_dir_all, write};

const GIB: u64 = 1 << 30;

/// A made-up `/proc` and `/sys/fs/cgroup` of a machine with 16 GiB, 8 of them free.
fn machine(cgroup: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Probe) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (proc, groups) = (dir.path().join("proc"), dir.path().join("cgroup"));
    create_dir_all(proc.join("self")).expect("proc");
    let meminfo = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n";
    write(proc.join("meminfo"), meminfo).expect("meminfo");
    write(proc.join("self/cgroup"), cgroup).expect("cgroup");
    for (path, text) in files {
        let path = groups.join(path);
        create_dir_all(path.parent().expect("a parent")).expect("the group");
        write(path, text).expect("the account");
    }
    let probe = Probe::at(proc, groups);
    (dir, probe)
}

#[test]
fn machine_alone_is_the_bound() {
    let (_dir, probe) = machine("0::/\n", &[]);
    assert_eq!(
        probe.limit(),
        Amount {
            bytes: 16 * GIB,
            bound: Bound::Machine
        }
    );
    assert_eq!(
        probe.free(),
        Amount {
            bytes: 8 * GIB,
            bound: Bound::Machine
        }
    );
}

#[test]
fn tightest_group_up_the_tree_is_the_bound() {
    let (dir, probe) = machine(
        "0::/kube/pod/c1\n",
        &[
            ("kube/pod/c1/memory.max", "max\n"),
            ("kube/pod/c1/memory.current", "1073741824\n"),
            ("kube/pod/memory.max", "4294967296\n"),
            ("kube/pod/memory.current", "3221225472\n"),
            (
                "kube/pod/memory.stat",
                "anon 1\nfile 9\ninactive_file 1073741824\nactive_file 536870912\n",
            ),
            ("kube/memory.max", "12884901888\n"),
            ("kube/memory.current", "3221225472\n"),
        ],
    );
    let bound = Bound::Group(dir.path().join("cgroup/kube/pod"));
    assert_eq!(
        probe.limit(),
        Amount {
            bytes: 4 * GIB,
            bound: bound.clone()
        }
    );
    // 4 GiB less the 3 in use, of which 1.5 are page cache.
    assert_eq!(
        probe.free(),
        Amount {
            bytes: 5 * GIB / 2,
            bound
        }
    );
}

#[test]
fn the_quick_look_counts_no_page_cache_and_reads_only_groups_that_bind() {
    let (dir, probe) = machine(
        "0::/pod/c1\n",
        &[
            ("pod/c1/memory.max", "4294967296\n"),
            ("pod/c1/memory.current", "3221225472\n"),
            ("pod/c1/memory.stat", "inactive_file 1073741824\n"),
            // May use more than there is: nothing else of it is looked at.
            ("pod/memory.max", "34359738368\n"),
        ],
    );
    let bound = Bound::Group(dir.path().join("cgroup/pod/c1"));
    let quick = |total, free| probe.free_at_least((total, free));
    assert_eq!(quick(16 * GIB, 8 * GIB), Amount { bytes: GIB, bound });
    assert_eq!(quick(16 * GIB, 7).bytes, 7);
    assert_eq!(
        quick(4 * GIB, 3 * GIB).bound,
        Bound::Machine,
        "its limit binds nobody"
    );
}

#[test]
fn version_1_counts_too_and_its_unlimited_value_does_not() {
    let (dir, probe) = machine(
        "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
        &[
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "1\n"),
            ("memory/docker/abc/memory.limit_in_bytes", "2147483648\n"),
            ("memory/docker/abc/memory.usage_in_bytes", "3221225472\n"),
            ("memory/docker/abc/memory.stat", "total_inactive_file 0\n"),
        ],
    );
    let bound = Bound::Group(dir.path().join("cgroup/memory/docker/abc"));
    assert_eq!(
        probe.limit(),
        Amount {
            bytes: 2 * GIB,
            bound: bound.clone()
        }
    );
    assert_eq!(probe.free(), Amount { bytes: 0, bound });
}

#[test]
fn in_a_container_the_root_stands_for_a_path_that_is_not_there() {
    let (dir, probe) = machine(
        "4:memory:/docker/abc\n0::/../../outside\n",
        &[
            ("memory/memory.limit_in_bytes", "1073741824\n"),
            ("memory/memory.usage_in_bytes", "0\n"),
        ],
    );
    let bound = Bound::Group(dir.path().join("cgroup/memory"));
    assert_eq!(probe.limit(), Amount { bytes: GIB, bound });
}

#[test]
fn nothing_readable_leaves_the_kernel_to_be_asked() {
    let probe = Probe::at("/nonexistent", "/nonexistent");
    assert!(probe.limit().bytes > 0);
    assert!(probe.free().bytes > 0);
}

#[test]
fn promises_add_up_and_are_given_back() {
    static ACCOUNT: AtomicU64 = AtomicU64::new(0);
    let free = Amount {
        bytes: 2 * GIB + RESERVE_BYTES,
        bound: Bound::Machine,
    };
    let first = Promise::on(&ACCOUNT, GIB, &free).expect("half fits");
    let second = Promise::on(&ACCOUNT, GIB, &free).expect("the other half fits");
    let error = Promise::on(&ACCOUNT, 1, &free).expect_err("no more than that");
    assert!(
        error.to_string().contains("promised to other loads"),
        "{error}"
    );
    drop(first);
    drop(Promise::on(&ACCOUNT, GIB, &free).expect("fits again"));
    drop(second);
    assert_eq!(ACCOUNT.load(Ordering::Relaxed), 0);
}

#[test]
fn what_was_found_free_is_believed_while_it_is_fresh_and_ample() {
    let at = Instant::now();
    let bytes = AMPLE * (RESERVE_BYTES + 4096) + 4096;
    let free = Amount {
        bytes,
        bound: Bound::Machine,
    };
    let mut seen = Seen { at, free };
    let mut take = |bytes, after| seen.take(bytes, at + after).map(|free| free.bytes);
    assert_eq!(take(4096, BELIEVED), None, "too old");
    assert_eq!(take(8192, Duration::ZERO), None, "too much");
    assert_eq!(take(4096, Duration::ZERO), Some(bytes));
    assert_eq!(take(4096, Duration::ZERO), Some(bytes - 4096));
    assert_eq!(
        take(4096, Duration::ZERO),
        None,
        "what is left is not ample"
    );
    assert_eq!(take(u64::MAX, Duration::ZERO), None);
}
