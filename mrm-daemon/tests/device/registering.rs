//! Segments that devices copy from by themselves.

use crate::machine::{count, device, free_bytes, inject, on_machine, with_degraded};
use crate::model::{LARGE, Model, SMALL};
use mrm_cuda::Mechanism::{Legacy, Vmm};
use mrm_cuda::release_deferred;
use mrm_daemon::degraded::Degraded;
use mrm_daemon::device::{Device, DeviceSettings, Feed, HostFeed, Register};
use mrm_proto::layout::Granularity;
use std::sync::Arc;
use std::sync::mpsc::channel;

fn settings(register: Register) -> DeviceSettings {
    DeviceSettings {
        stage_bytes: 100_000,
        register,
        ..DeviceSettings::default()
    }
}

/// Fills, checks, and frees.
#[track_caller]
fn fill(device: &Device, model: &Model, feeds: &[Arc<HostFeed>], granularity: Granularity) {
    let order = model.order(device, granularity, Feed::Host(feeds.to_vec()));
    let image = device.fill(&order).expect("filled");
    model.check(device, &image);
    image.free().expect("freed");
}

const GRANULARITIES: [Granularity; 3] = [
    Granularity::Model,
    Granularity::Block {
        block_bytes: 4 << 20,
    },
    Granularity::Tensor,
];

#[test]
fn registered_bytes_are_exact_and_registered_once() {
    on_machine(&[], || {
        for (how, model) in [(Vmm, Model::new(&LARGE)), (Legacy, Model::new(&SMALL))] {
            let device = device(0, how, &settings(Register::Always));
            let baseline = free_bytes(&device);
            let before = count("cuMemHostRegister_v2");
            let feeds = model.feeds();
            for granularity in GRANULARITIES {
                fill(&device, &model, &feeds, granularity);
            }
            assert_eq!(count("cuMemHostRegister_v2") - before, feeds.len());
            assert_eq!(free_bytes(&device), baseline);
        }
    });
}

#[test]
fn auto_registers_what_is_copied_for_the_second_time() {
    on_machine(&[], || {
        let model = Model::new(&LARGE);
        let (auto, never) = (
            device(0, Vmm, &settings(Register::Auto)),
            device(1, Vmm, &settings(Register::Never)),
        );
        let feeds = model.feeds();
        fill(&auto, &model, &feeds, Granularity::Model);
        assert_eq!(count("cuMemHostRegister_v2"), 0);
        fill(&auto, &model, &feeds, Granularity::Model);
        assert_eq!(count("cuMemHostRegister_v2"), feeds.len());
        let others = model.feeds();
        for _ in 0..3 {
            fill(&never, &model, &others, Granularity::Model);
        }
        assert_eq!(count("cuMemHostRegister_v2"), feeds.len());
    });
}

#[test]
fn what_is_still_loading_is_not_registered() {
    on_machine(&[], || {
        let model = Model::new(&[&[2 << 20]]);
        let device = device(0, Vmm, &settings(Register::Always));
        let bytes = &model.files[0];
        let (feed, writer) = HostFeed::loading("file", bytes.len() as u64);
        let segment = mrm_daemon::memory::HostSegment::holding(bytes, &Degraded::new());
        let segment = segment.expect("a segment");
        writer.begin(segment.fd());
        writer.filled(segment.bytes());
        let order = model.order(&device, Granularity::Model, Feed::Host(vec![feed]));
        std::thread::scope(|scope| {
            let filling = scope.spawn(|| device.fill(&order));
            // All of it is copied, and only its digest is waited for.
            crate::machine::await_that("the copy", || {
                order.progress.load(std::sync::atomic::Ordering::Relaxed) == 2 << 20
            });
            writer.done(segment.fd(), *blake3::hash(bytes).as_bytes());
            let image = filling.join().expect("no panic").expect("filled");
            model.check(&device, &image);
        });
        assert_eq!(count("cuMemHostRegister_v2"), 0);
    });
}

#[test]
fn a_failed_registration_is_degraded_told_once_and_not_tried_again() {
    on_machine(&[], || {
        let model = Model::new(&LARGE);
        let degraded = Degraded::new();
        let device = with_degraded(0, Vmm, &settings(Register::Always), &degraded);
        let feeds = model.feeds();
        inject("cuMemHostRegister_v2:2:1+");
        fill(&device, &model, &feeds, Granularity::Model);
        inject("");
        fill(&device, &model, &feeds, Granularity::Model);
        assert_eq!(count("cuMemHostRegister_v2"), feeds.len());
        let listed = degraded.list();
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (listed[0].id, listed[0].times),
            ("device_register", feeds.len() as u64)
        );
        assert!(
            listed[0].cause.contains("cuMemHostRegister_v2"),
            "{:?}",
            listed[0]
        );
    });
}

#[test]
fn a_device_that_cannot_register_is_not_asked() {
    on_machine(&[("NO_READ_ONLY_REGISTER", "1")], || {
        let model = Model::new(&LARGE);
        let degraded = Degraded::new();
        let device = with_degraded(0, Vmm, &settings(Register::Always), &degraded);
        fill(&device, &model, &model.feeds(), Granularity::Model);
        assert_eq!(count("cuMemHostRegister_v2"), 0);
        assert_eq!(degraded.list().len(), 1);
    });
}

#[test]
fn the_memory_is_not_gone_before_the_driver_let_go_of_it() {
    on_machine(&[], || {
        let model = Model::new(&[&[2 << 20]]);
        let device = device(0, Vmm, &settings(Register::Always));
        let feeds = model.feeds();
        fill(&device, &model, &feeds, Granularity::Model);
        let (sender, gone) = channel();
        feeds[0].when_gone(Box::new(move || {
            let _ = sender.send(());
        }));
        inject("cuMemHostUnregister:4242");
        drop(feeds);
        assert!(gone.try_recv().is_err(), "the driver still has it");
        assert_eq!(release_deferred(), 0);
        assert_eq!(gone.try_recv(), Ok(()));
    });
}
