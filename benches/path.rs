//! The pure part of a request's path, step by step and from head to toe, without a socket.
//!
//! `cargo bench --bench path`. What the sizes are: a usual delivery, and the same with padding.

#![expect(clippy::unwrap_used, reason = "a bench may panic")]

mod support;

use std::{hint::black_box, time::UNIX_EPOCH};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hookgate::webhook::{
    headers::{DeliveryId, EventKind},
    payload::Delivery,
    signature::Signature,
};

use support::{SIZES, Sample, filter, head_to_toe, verifier};

fn path(criterion: &mut Criterion) {
    let (verifier, filter) = (verifier(), filter("environments"));
    for (name, size) in SIZES {
        let sample = Sample::new(size);
        let signature = Signature::parse(sample.signature.as_bytes()).unwrap();
        let verified = verifier.verify(sample.body.clone(), &signature, UNIX_EPOCH).unwrap().body;
        let (id, kind) =
            (DeliveryId::parse(b"a").unwrap(), EventKind::parse(sample.kind.as_bytes()).unwrap());
        let delivery = Delivery::identify(&verified, id, kind).unwrap();

        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(size.try_into().unwrap()));
        group.bench_function("signature", |b| {
            b.iter(|| Signature::parse(black_box(sample.signature.as_bytes())));
        });
        group.bench_function("verify", |b| {
            b.iter(|| verifier.verify(black_box(&sample.body).clone(), &signature, UNIX_EPOCH));
        });
        group.bench_function("identify", |b| {
            b.iter(|| black_box(Delivery::identify(black_box(&verified), id, kind)));
        });
        group.bench_function("filter", |b| b.iter(|| filter.judge(black_box(&delivery))));
        group.bench_function("head to toe", |b| {
            b.iter(|| head_to_toe(&verifier, &filter, black_box(&sample)));
        });
        group.finish();
    }
}

criterion_group!(benches, path);
criterion_main!(benches);
