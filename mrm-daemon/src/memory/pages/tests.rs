use super::super::host::Mapping;
use super::*;
use std::sync::LazyLock;

/// A kernel that answers the n-th collapse of a part as told.
#[derive(Default)]
struct Fake {
    touched: Vec<usize>,
    calls: Vec<Range<usize>>,
    /// Parts (by offset) that fail, and how.
    broken: Vec<(usize, Errno)>,
    no_page_at: Option<usize>,
    /// How long each huge page takes, and what that came to.
    page_takes: Duration,
    passed: Duration,
}

impl Collapse for Fake {
    fn fault(&mut self, _: Range<usize>) -> Result<(), Errno> {
        Ok(())
    }

    fn touch(&mut self, offset: usize) -> Result<(), Errno> {
        self.touched.push(offset);
        if self.no_page_at == Some(offset) {
            Err(Errno::NOMEM)
        } else {
            Ok(())
        }
    }

    fn collapse(&mut self, range: Range<usize>) -> Result<(), Errno> {
        self.calls.push(range.clone());
        self.passed += self.page_takes * u32::try_from(range.len() / HUGE).expect("few");
        match self.broken.iter().find(|(at, _)| range.contains(at)) {
            Some((_, errno)) => Err(*errno),
            None => Ok(()),
        }
    }

    fn now(&self) -> Instant {
        *EPOCH + self.passed
    }
}

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

#[test]
fn who_is_in_a_hurry_takes_small_pages_once_huge_ones_have_come_slowly_for_long() {
    let whole = 3 * STEP;
    let step_pages = u32::try_from(STEP / HUGE).expect("few");
    // So late that patience ends with the second step, and not with the first.
    let late = SLOW + PATIENCE * 3 / 4 / step_pages;
    for (page_takes, hastens, expected) in [
        (SLOW, true, (whole, false)),
        (SLOW + PATIENCE / 4 / step_pages, true, (whole, false)),
        (late, true, (2 * STEP, true)),
        (late + PATIENCE, true, (STEP, true)),
        (late + PATIENCE, false, (whole, false)),
    ] {
        let mut fake = Fake {
            page_takes,
            ..Fake::default()
        };
        let mut parts = HugeParts {
            hastens,
            ..HugeParts::default()
        };
        for start in (0..whole).step_by(STEP) {
            parts.step(&mut fake, start..start + STEP);
        }
        assert_eq!((parts.bytes, parts.slow), expected, "{page_takes:?}");
    }
}

/// How much of `whole` bytes got huge pages, and the last error.
fn collapse_all(fake: &mut Fake, whole: usize) -> (usize, Option<Errno>) {
    let mut parts = HugeParts::default();
    for start in (0..whole).step_by(STEP) {
        parts.step(fake, start..whole.min(start + STEP));
    }
    (parts.bytes, parts.last)
}

#[test]
fn all_of_it_in_large_steps() {
    let mut fake = Fake::default();
    let whole = 2 * STEP + 3 * HUGE;
    assert_eq!(collapse_all(&mut fake, whole), (whole, None));
    assert_eq!(fake.calls.len(), 3);
    assert_eq!(fake.touched.len(), whole / HUGE);
}

#[test]
fn a_part_that_fails_stays_small_and_the_rest_is_huge() {
    let mut fake = Fake {
        broken: vec![(5 * HUGE, Errno::AGAIN)],
        ..Fake::default()
    };
    let whole = 2 * STEP;
    assert_eq!(
        collapse_all(&mut fake, whole),
        (whole - HUGE, Some(Errno::AGAIN))
    );
}

#[test]
fn a_step_without_any_huge_page_is_the_last() {
    let broken = (0..2 * STEP)
        .step_by(HUGE)
        .map(|at| (at, Errno::NOMEM))
        .collect();
    let mut fake = Fake {
        broken,
        ..Fake::default()
    };
    assert_eq!(collapse_all(&mut fake, 4 * STEP), (0, Some(Errno::NOMEM)));
    assert_eq!(fake.calls.len(), 1 + STEP / HUGE);
}

#[test]
fn an_unknown_call_is_tried_once() {
    let mut fake = Fake {
        broken: vec![(0, Errno::INVAL)],
        ..Fake::default()
    };
    assert_eq!(collapse_all(&mut fake, 4 * STEP), (0, Some(Errno::INVAL)));
    assert_eq!(fake.calls.len(), 1);
}

#[test]
fn no_page_to_touch_ends_it() {
    let mut fake = Fake {
        no_page_at: Some(STEP + HUGE),
        ..Fake::default()
    };
    assert_eq!(
        collapse_all(&mut fake, 2 * STEP),
        (STEP, Some(Errno::NOMEM))
    );
}

#[test]
fn the_setting_is_read_from_its_brackets() {
    let never = Policy::parse("always within_size advise [never] deny force\n");
    assert_eq!(never, Policy::OnCollapse("never".to_owned()));
    assert_eq!(
        Policy::parse("always within_size [advise] never deny force"),
        Policy::OnFault
    );
    assert_eq!(Policy::parse(""), Policy::OnCollapse(String::new()));
}

#[test]
fn every_reason_has_a_cause_and_a_cure() {
    let reasons = [
        NotHuge::Refused(Policy::Absent),
        NotHuge::Refused(Policy::OnFault),
        NotHuge::Refused(Policy::OnCollapse("deny".to_owned())),
        NotHuge::NoneFree(Errno::NOMEM),
    ];
    for reason in reasons {
        assert!(
            !reason.cause().is_empty() && !reason.cure().is_empty(),
            "{reason:?}"
        );
    }
}

/// On a tmpfs of its own: what the kernel does for a memfd when `shmem_enabled` has the same value.
#[test]
#[ignore = "needs a tmpfs (-o size=64m,huge=always or advise) named by MRM_TEST_HUGE_TMPFS"]
fn on_fault_the_kernel_gives_huge_pages_and_none_beyond_the_end() {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let dir = std::env::var_os("MRM_TEST_HUGE_TMPFS").expect("MRM_TEST_HUGE_TMPFS");
    let degraded = Degraded::new();
    let populated = |bytes: usize| {
        let file = tempfile::tempfile_in(&dir).expect("a file");
        file.set_len(bytes as u64).expect("its length");
        let mut mapping = Mapping::new(file.as_fd(), bytes).expect("a mapping");
        let mut populator = Populator::by(Policy::OnFault, mapping.pager(), file.as_fd(), bytes);
        let mut done = Ok(0);
        while done.is_ok() && !populator.is_done() {
            done = populator.step();
        }
        let done = done.map(|_| populator.finish(&degraded));
        let mapped = smaps::huge_bytes(mapping.pager().address());
        done.map(|report| {
            (
                report,
                mapped,
                file.metadata().expect("stat").blocks() * 512,
            )
        })
    };
    for bytes in [1, HUGE - 1, HUGE, HUGE + 1, 5 * HUGE + 123] {
        let (report, mapped, allocated) = populated(bytes).expect("populated");
        let whole = bytes - bytes % HUGE;
        assert_eq!(
            (report.huge_bytes, report.cause),
            (whole as u64, None),
            "{bytes} bytes"
        );
        assert_eq!(mapped, Some(whole), "{bytes} bytes");
        assert_eq!(
            allocated,
            bytes.next_multiple_of(PAGE) as u64,
            "{bytes} bytes"
        );
    }
    let error = populated(128 << 20).expect_err("more than the tmpfs may hold");
    assert!(matches!(error, MemoryError::OutOfMemory { .. }), "{error}");
}
