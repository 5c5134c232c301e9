//! Bytes that are not all there yet, or never come.

use crate::filling::{completion, next};
use crate::machine::{await_that, device, free_bytes, on_machine};
use crate::model::{Model, SMALL};
use mrm_cuda::Mechanism::Vmm;
use mrm_daemon::degraded::Degraded;
use mrm_daemon::device::{Device, DeviceSettings, Feed, FeedWriter, HostFeed};
use mrm_daemon::memory::HostSegment;
use mrm_proto::error::ErrorCode;
use mrm_proto::layout::Granularity;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn small_stages() -> Device {
    let settings = DeviceSettings {
        stage_bytes: 4096,
        ..DeviceSettings::default()
    };
    device(0, Vmm, &settings)
}

/// Feeds of files that are about to be loaded.
fn loading(model: &Model) -> (Vec<Arc<HostFeed>>, Vec<FeedWriter>) {
    let load = |bytes: &Vec<u8>| HostFeed::loading("file", bytes.len() as u64);
    model.files.iter().map(load).unzip()
}

fn finish(feed: &FeedWriter, bytes: &[u8]) -> HostSegment {
    let segment = HostSegment::holding(bytes, &Degraded::new()).expect("a segment");
    feed.begin(segment.fd());
    feed.filled(segment.bytes());
    feed.done(segment.fd(), *blake3::hash(bytes).as_bytes());
    segment
}

#[test]
fn a_device_is_filled_while_the_files_are_read() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = small_stages();
        let (feeds, writers) = loading(&model);
        let order = model.order(&device, Granularity::Model, Feed::Host(feeds));
        let progress = Arc::clone(&order.progress);
        let image_bytes = model.expected(Granularity::Model)[0].len() as u64;
        let (done, inbox) = completion();
        device.fill_async(order, done);

        // The second file first: it is waited for in its order.
        finish(&writers[1], &model.files[1]);
        assert_eq!(
            progress.load(Ordering::Relaxed),
            0,
            "nothing of the first is there"
        );
        let whole = &model.files[0];
        let mut there = tempfile::tempfile().expect("a file");
        there.write_all(&whole[..4500]).expect("written");
        there.seek(SeekFrom::Start(0)).expect("sought");
        writers[0].begin(std::os::fd::AsFd::as_fd(&there));
        writers[0].filled(4500);
        await_that("the first part", || {
            progress.load(Ordering::Relaxed) >= 4096
        });
        assert!(progress.load(Ordering::Relaxed) < image_bytes);
        assert!(inbox.try_recv().is_err(), "the rest is waited for");

        finish(&writers[0], whole);
        let image = next(&inbox).expect("filled");
        model.check(&device, &image);
        assert_eq!(progress.load(Ordering::Relaxed), image_bytes);
    });
}

#[test]
fn a_load_that_fails_midway_fails_the_fill_and_leaves_nothing() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = small_stages();
        let baseline = free_bytes(&device);
        for fail_at in [0, 4500, model.files[0].len()] {
            let (feeds, writers) = loading(&model);
            let order = model.order(&device, Granularity::Tensor, Feed::Host(feeds));
            let (done, inbox) = completion();
            device.fill_async(order, done);
            finish(&writers[1], &model.files[1]);
            let there = HostSegment::holding(&model.files[0], &Degraded::new()).expect("a segment");
            writers[0].begin(there.fd());
            writers[0].filled(fail_at as u64);
            writers[0].failed(ErrorCode::SourceChanged, &"`file` changed");
            let error = next(&inbox).expect_err("failed");
            assert_eq!(error.code(), ErrorCode::SourceChanged);
            assert_eq!(error.to_string(), "`file` changed");
            assert_eq!(free_bytes(&device), baseline);
        }
        let (feeds, writers) = loading(&model);
        let order = model.order(&device, Granularity::Model, Feed::Host(feeds));
        let (done, inbox) = completion();
        device.fill_async(order, done);
        drop(writers);
        let error = next(&inbox).expect_err("given up");
        assert_eq!(error.code(), ErrorCode::Cancelled);
        assert_eq!(free_bytes(&device), baseline);
    });
}

#[test]
fn a_cancel_ends_a_fill_that_waits() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = small_stages();
        let baseline = free_bytes(&device);
        let (feeds, _writers) = loading(&model);
        let order = model.order(&device, Granularity::Model, Feed::Host(feeds));
        let cancel = Arc::clone(&order.cancel);
        let (done, inbox) = completion();
        device.fill_async(order, done);
        await_that("the allocation", || free_bytes(&device) < baseline);
        cancel.store(true, Ordering::Relaxed);
        assert_eq!(
            next(&inbox).expect_err("cancelled").code(),
            ErrorCode::Cancelled
        );
        assert_eq!(free_bytes(&device), baseline);
    });
}

#[test]
fn files_that_changed_are_refused() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = small_stages();
        let baseline = free_bytes(&device);
        let dir = tempfile::tempdir().expect("a directory");
        let refused = |spoil: &dyn Fn(&mut Vec<mrm_daemon::device::FileFeed>)| {
            let mut files = model.in_files(dir.path());
            spoil(&mut files);
            let order = model.order(&device, Granularity::Model, Feed::Files(files));
            let error = device.fill(&order).expect_err("changed");
            assert_eq!(error.code(), ErrorCode::SourceChanged, "{error}");
            assert_eq!(free_bytes(&device), baseline);
            error.to_string()
        };
        let second = dir.path().join("1.safetensors");
        let written = refused(&|_| std::fs::write(&second, b"other").expect("written"));
        assert!(written.contains("1.safetensors"), "{written}");
        let check = mrm_daemon::format::HeaderCheck::of(b"another header");
        let header = refused(&|files| files[1].check = Some(check));
        assert!(header.contains("header"), "{header}");
        let grown = refused(&|files| files[0].identity.bytes -= 1);
        assert!(grown.contains("0.safetensors"), "{grown}");
    });
}
