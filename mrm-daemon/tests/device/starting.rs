//! Finding devices, and proving that they can be used.

use crate::machine::{calls, free_bytes, inject, on_machine, self_test, uuid};
use mrm_cuda::{DeviceUuid, Mechanism};
use mrm_daemon::degraded::Degraded;
use mrm_daemon::device::{DeviceSettings, Found, SelfTest, Started, start};
use std::time::{Duration, Instant};

fn look(wanted: &[DeviceUuid], how: &SelfTest, degraded: &Degraded) -> Found {
    match start(&DeviceSettings::default(), wanted, how, degraded) {
        Started::Driver(found) => found,
        Started::NoDriver(no) => panic!("{no:?}"),
    }
}

#[test]
fn devices_are_found_and_described() {
    on_machine(&[("CONTEXT_BYTES", "64MiB")], || {
        let degraded = Degraded::new();
        let found = look(&[], &self_test(), &degraded);
        assert_eq!((found.devices.len(), found.refused.len()), (2, 0));
        for (ordinal, usable) in found.devices.iter().enumerate() {
            let report = &usable.report;
            assert_eq!(report.uuid, uuid(ordinal));
            assert_eq!(report.mechanism, Mechanism::Vmm);
            assert_eq!(report.context_bytes, Some(64 << 20));
            assert_eq!(report.peers, [uuid(1 - ordinal)]);
            assert_eq!(report.total_bytes, 8 << 30);
            // The child's context and the trial's memory are gone; the own context is there.
            assert_eq!(report.free_bytes, (8 << 30) - (64 << 20));
            assert_eq!(free_bytes(&usable.device), report.free_bytes);
            assert!(report.read_only_register);
            assert!(report.why.contains("a child process"), "{}", report.why);
        }
        assert_eq!(degraded.list(), []);
    });
}

#[test]
fn only_what_is_wanted_is_taken() {
    on_machine(&[("NO_PEER", "1")], || {
        let nowhere = DeviceUuid([7; 16]);
        let found = look(&[uuid(1), nowhere], &self_test(), &Degraded::new());
        let taken: Vec<_> = found
            .devices
            .iter()
            .map(|usable| usable.report.uuid)
            .collect();
        assert_eq!(taken, [uuid(1)]);
        assert_eq!(found.devices[0].report.peers, []);
        assert_eq!(found.refused.len(), 1);
        assert_eq!(found.refused[0].uuid, nowhere);
        let cause = &found.refused[0].cause;
        assert!(cause.contains("CUDA_VISIBLE_DEVICES"), "{cause}");
    });
}

#[test]
fn without_peers_there_are_none() {
    on_machine(&[("NO_PEER", "1")], || {
        let found = look(&[], &self_test(), &Degraded::new());
        assert!(
            found
                .devices
                .iter()
                .all(|usable| usable.report.peers.is_empty())
        );
    });
}

#[test]
fn a_mechanism_that_a_child_cannot_use_is_passed_over_aloud() {
    on_machine(&[("NO_POSIX_FD", "1")], || {
        let degraded = Degraded::new();
        let found = look(&[], &self_test(), &degraded);
        assert!(
            found
                .devices
                .iter()
                .all(|usable| usable.report.mechanism == Mechanism::Legacy)
        );
        let listed = degraded.list();
        assert_eq!((listed[0].id, listed[0].times), ("device_sharing", 2));
    });
}

#[test]
fn without_a_driver_the_cause_and_the_cure_are_told() {
    on_machine(&[("INIT_ERROR", "100")], || {
        match start(
            &DeviceSettings::default(),
            &[],
            &self_test(),
            &Degraded::new(),
        ) {
            Started::NoDriver(no) => {
                assert_eq!(no.id, "no_device");
                assert!(!no.cause.is_empty() && !no.cure.is_empty());
            }
            Started::Driver(found) => panic!("{found:?}"),
        }
    });
}

#[test]
fn a_child_that_does_not_do_its_part_is_a_cause() {
    on_machine(&[], || {
        let child = |program: &str, arguments: &[&str], deadline: Duration| SelfTest {
            program: program.into(),
            arguments: arguments.iter().map(Into::into).collect(),
            deadline,
        };
        let soon = Duration::from_millis(300);
        let long = Duration::from_secs(60);
        let cases = [
            (
                child("/bin/sh", &["-c", "exec sleep 600"], soon),
                "did not answer in time",
            ),
            (child("/bin/sh", &["-c", "exit 1"], long), "died"),
            (child("/bin/sh", &["-c", "kill -9 $$"], long), "died"),
            (child("/nonexistent/mrmd", &[], long), "cannot be started"),
        ];
        for (how, says) in cases {
            let began = Instant::now();
            let found = look(&[uuid(0)], &how, &Degraded::new());
            assert!(found.devices.is_empty());
            let cause = &found.refused[0].cause;
            assert!(cause.contains(says), "{cause}");
            assert!(cause.contains("vmm") && cause.contains("legacy"), "{cause}");
            // Generous: that it does not wait for the ten minutes of `sleep`.
            assert!(began.elapsed() < long, "{cause}");
        }
        let found = look(&[], &self_test(), &Degraded::new());
        assert_eq!(found.devices.len(), 2, "nothing of that stays");
        assert_eq!(free_bytes(&found.devices[0].device), 8 << 30);
    });
}

#[test]
fn each_failing_call_costs_one_device_or_nothing() {
    on_machine(&[], || {
        drop(look(&[], &self_test(), &Degraded::new()));
        let mut functions = calls();
        functions.sort();
        functions.dedup();
        for function in functions {
            let what = format!("{function}:4242");
            inject(&what);
            match start(
                &DeviceSettings::default(),
                &[],
                &self_test(),
                &Degraded::new(),
            ) {
                Started::Driver(found) => {
                    assert_eq!(found.devices.len() + found.refused.len(), 2, "{what}");
                    assert!(!found.devices.is_empty(), "{what} takes both");
                }
                Started::NoDriver(no) => {
                    assert!(no.cause.contains(&function), "{what}: {}", no.cause);
                }
            }
        }
        inject("");
        mrm_cuda::release_deferred();
        let found = look(&[], &self_test(), &Degraded::new());
        assert_eq!(free_bytes(&found.devices[0].device), 8 << 30);
    });
}
