//! What is measured of each device, by its UUID.

use super::{LOAD_BUCKETS_S, add, opts, seconds};
use crate::status::view::{DeviceStateView, DeviceView, DevicesView, DriverStateView};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry};

const LABEL: &[&str] = &["device"];

/// Counters by device.
#[derive(Debug)]
pub(super) struct DeviceCounters {
    pub(super) fills: IntCounterVec,
    pub(super) fill_failures: IntCounterVec,
    pub(super) filled_bytes: IntCounterVec,
    pub(super) fill_seconds: HistogramVec,
    pub(super) promotions: IntCounterVec,
    pub(super) evictions: IntCounterVec,
    pub(super) evicted_bytes: IntCounterVec,
    pub(super) revoked_leases: IntCounterVec,
}

/// Set from one [`DevicesView`] at each scrape.
#[derive(Debug)]
pub(super) struct DeviceGauges {
    driver: IntGaugeVec,
    ready: IntGaugeVec,
    lost: IntGaugeVec,
    memory: IntGaugeVec,
    free: IntGaugeVec,
    budget: IntGaugeVec,
    limit: IntGaugeVec,
    charged: IntGaugeVec,
    reserved: IntGaugeVec,
    freeing: IntGaugeVec,
    resident: IntGaugeVec,
    context: IntGaugeVec,
    images: IntGaugeVec,
    loading: IntGaugeVec,
    leases: IntGaugeVec,
}

impl DeviceCounters {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name, help| add(r, IntCounterVec::new(opts(name, help), LABEL)?);
        let seconds = HistogramOpts::new(
            "mrm_device_fill_duration_seconds",
            "From the start of a copy to a device to its seal.",
        );
        Ok(Self {
            fills: counter("device_fills_total", "Models copied to the device.")?,
            fill_failures: counter("device_fill_failures_total", "Copies that failed.")?,
            filled_bytes: counter("device_filled_bytes_total", "Bytes copied to the device.")?,
            fill_seconds: add(
                r,
                HistogramVec::new(seconds.buckets(LOAD_BUCKETS_S.to_vec()), LABEL)?,
            )?,
            promotions: counter(
                "device_promotions_total",
                "Opens granted after a copy from memory, for which nothing was read.",
            )?,
            evictions: counter("device_evictions_total", "Models dropped from the device.")?,
            evicted_bytes: counter(
                "device_evicted_bytes_total",
                "Bytes dropped from the device, as they were charged.",
            )?,
            revoked_leases: counter(
                "device_revoked_leases_total",
                "Leases taken away because the device was lost.",
            )?,
        })
    }

    /// Counts nothing, but from now on the device is in the text, with zeros.
    fn begin(&self, uuid: &str) {
        let label = &[uuid];
        for counter in [
            &self.fills,
            &self.fill_failures,
            &self.filled_bytes,
            &self.promotions,
            &self.evictions,
            &self.evicted_bytes,
            &self.revoked_leases,
        ] {
            counter.with_label_values(label).inc_by(0);
        }
        drop(self.fill_seconds.with_label_values(label));
    }

    pub(super) fn fill_done(&self, uuid: &str, bytes: u64, took_us: u64) {
        let label = &[uuid];
        self.fills.with_label_values(label).inc();
        self.filled_bytes.with_label_values(label).inc_by(bytes);
        let took = self.fill_seconds.with_label_values(label);
        took.observe(seconds(took_us));
    }

    pub(super) fn evicted(&self, uuid: &str, charged_bytes: u64) {
        let label = &[uuid];
        self.evictions.with_label_values(label).inc();
        let bytes = self.evicted_bytes.with_label_values(label);
        bytes.inc_by(charged_bytes);
    }
}

impl DeviceGauges {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name, help| add(r, IntGaugeVec::new(opts(name, help), LABEL)?);
        let driver = opts(
            "device_driver_info",
            "Always 1; the labels say what the probe of the driver came to.",
        );
        Ok(Self {
            driver: add(r, IntGaugeVec::new(driver, &["state", "version"])?)?,
            ready: gauge("device_ready", "1 while models can be on the device.")?,
            lost: gauge("device_lost", "1 once the device failed while in use.")?,
            memory: gauge("device_memory_bytes", "All memory of the device.")?,
            free: gauge("device_free_bytes", "What the driver last called free.")?,
            budget: gauge("device_budget_bytes", "The budget as configured.")?,
            limit: gauge("device_limit_bytes", "What models may take now.")?,
            charged: gauge(
                "device_charged_bytes",
                "Charged for what is loading, resident, or kept free for clients.",
            )?,
            reserved: gauge(
                "device_reserved_bytes",
                "The part that is kept free for clients.",
            )?,
            freeing: gauge(
                "device_freeing_bytes",
                "Still charged for what is being dropped.",
            )?,
            resident: gauge("device_resident_bytes", "Charged for what is resident.")?,
            context: gauge("device_context_bytes", "What the daemon's context takes.")?,
            images: gauge("device_images", "Models that are on the device.")?,
            loading: gauge("device_loading_images", "Models on their way to it.")?,
            leases: gauge("device_leases", "Leases on what the device has.")?,
        })
    }

    pub(super) fn set(&self, view: &DevicesView, counters: &DeviceCounters) {
        for gauge in self.all() {
            gauge.reset();
        }
        let version = view.driver.version.as_deref().unwrap_or_default();
        self.driver
            .with_label_values(&[state_name(view.driver.state), version])
            .set(1);
        for device in &view.devices {
            counters.begin(&device.uuid);
            self.set_one(device);
        }
    }

    fn set_one(&self, device: &DeviceView) {
        let of = |gauge: &IntGaugeVec| -> IntGauge { gauge.with_label_values(&[&device.uuid]) };
        of(&self.ready).set(i64::from(device.state == DeviceStateView::Ready));
        of(&self.lost).set(i64::from(device.state == DeviceStateView::Lost));
        for (gauge, value) in [
            (&self.memory, Some(device.total_bytes)),
            (&self.free, device.free_bytes),
            (&self.budget, Some(device.budget_bytes)),
            (&self.limit, Some(device.limit_bytes)),
            (&self.charged, Some(device.charged_bytes)),
            (&self.reserved, Some(device.reserved_bytes)),
            (&self.freeing, Some(device.freeing_bytes)),
            (&self.resident, Some(device.resident_bytes)),
            (&self.context, device.context_bytes),
            (&self.images, Some(device.images)),
            (&self.loading, Some(device.loading)),
            (&self.leases, Some(device.leases)),
        ] {
            // What is not known has no sample, rather than a zero.
            if let Some(value) = value {
                of(gauge).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
    }

    fn all(&self) -> [&IntGaugeVec; 15] {
        [
            &self.driver,
            &self.ready,
            &self.lost,
            &self.memory,
            &self.free,
            &self.budget,
            &self.limit,
            &self.charged,
            &self.reserved,
            &self.freeing,
            &self.resident,
            &self.context,
            &self.images,
            &self.loading,
            &self.leases,
        ]
    }
}

/// As the JSON writes it.
const fn state_name(state: DriverStateView) -> &'static str {
    match state {
        DriverStateView::Ready => "ready",
        DriverStateView::NoDriver => "no_driver",
        DriverStateView::Stub => "stub",
        DriverStateView::NoDevice => "no_device",
        DriverStateView::TooOld => "too_old",
        DriverStateView::SymbolMissing => "symbol_missing",
        DriverStateView::InitFailed => "init_failed",
        DriverStateView::Disabled => "disabled",
    }
}
