//! The trace that a delivery belongs to (W3C Trace Context). Nobody has signed it: of the sender's `traceparent` the trace's
//! ID and the known flags go on, so that requests can be found together, and nothing else.
//!
//! It is also how hookgate knows its own requests when they come back to it. The parent that it writes, and the trace that
//! it begins, are digests with a number that only this process knows, over the delivery's ID as well. A request that carries
//! one of them for that ID was made of one that this process sent. Nobody can get another's delivery refused by it: what
//! is refused is the request that carries the mark, and nothing is remembered. Another hookgate in front has another number.

use std::{
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use hyper::header::HeaderValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::head::Header;

/// The sender's trace with a new parent, or a new trace, as the `traceparent` that goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trace {
    text: [u8; 55],
    ours: bool,
}

impl Trace {
    /// Continues the given trace, or begins one, for the delivery with this ID.
    pub(super) fn of(given: Header<'_>, id: &str) -> Self {
        let given = given.once().and_then(read_trace);
        let (trace, flags) = given.map_or_else(|| (begin(id), 1), |(trace, _, flags)| (trace, flags));
        let parent = mark(&trace.to_be_bytes(), id);
        let ours = given.is_some_and(|(trace, given, _)| given == parent || has_begun(trace, id));
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        for (place, bytes) in
            [(3..35, &trace.to_be_bytes()[..]), (36..52, &parent.to_be_bytes()[..]), (53..55, &[flags][..])]
        {
            let digits = text.get_mut(place).unwrap_or_default();
            hex::encode_to_slice(bytes, digits).expect("each place has two digits for a byte");
        }
        Self { text, ours }
    }

    /// Whether the request was made of one that this process sent.
    pub(super) const fn is_ours(&self) -> bool {
        self.ours
    }

    /// The 32 digits of the trace.
    pub(super) fn id(&self) -> &str {
        self.text.get(3..35).and_then(|digits| str::from_utf8(digits).ok()).unwrap_or_default()
    }

    /// The header for the service.
    pub(super) fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text).expect("hex digits and hyphens are a header value")
    }
}

/// A new trace: a random half, and its mark.
fn begin(id: &str) -> u128 {
    let random = fastrand::u64(1..);
    u128::from(random) << 64 | u128::from(mark(&random.to_be_bytes(), id))
}

/// Whether this process began it, for this delivery. On the way back a proxy may have put in a parent of its own.
fn has_begun(trace: u128, id: &str) -> bool {
    let bytes = trace.to_be_bytes();
    let (random, marked) = bytes.split_at(8);
    mark(random, id).to_be_bytes() == *marked
}

/// What only this process makes of these bytes and this ID; never zero, which traces must not be.
fn mark(bytes: &[u8], id: &str) -> u64 {
    static KEY: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
    xxh3_64_with_seed(bytes, xxh3_64_with_seed(id.as_bytes(), *KEY)).max(1)
}

/// Trace ID, parent ID and flags of a well-formed `traceparent`.
fn read_trace(value: &HeaderValue) -> Option<(u128, u64, u8)> {
    let text = value.to_str().ok()?;
    let mut parts = text.split('-');
    let mut hex = |digits: usize| {
        let part = parts.next()?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (part.len() == digits && part.bytes().all(lower_hex)).then_some(part)
    };
    let (version, trace, parent, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    // Later versions may say more behind the flags; this one does not.
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok()?;
    let parent = u64::from_str_radix(parent, 16).ok()?;
    // Of the flags only those go on that this version knows: sampled, and a random trace ID.
    (trace != 0 && parent != 0).then_some((trace, parent, u8::from_str_radix(flags, 16).ok()? & 0b11))
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::{super::head::Headers, *};

    fn of(given: &[&str], id: &str) -> Trace {
        let mut headers = HeaderMap::new();
        for value in given {
            headers.append("traceparent", HeaderValue::from_str(value).unwrap());
        }
        Trace::of(Headers::find(&headers).traceparent, id)
    }

    fn text(trace: &Trace) -> String {
        trace.header().to_str().unwrap().to_owned()
    }

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    #[test]
    fn traces_are_continued_or_begun() {
        let continued = text(&of(&[GIVEN], "a"));
        assert!(continued.starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        assert!(continued.ends_with("-00"));
        assert_ne!(continued, GIVEN);
        for wrong in [
            &[][..],
            &[GIVEN, GIVEN],
            &["00-00000000000000000000000000000000-b7ad6b7169203331-01"],
            &["00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"],
            &["00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
            &["ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
            &["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"],
            &["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"],
            &["nonsense"],
        ] {
            let new = text(&of(wrong, "a"));
            assert!(
                new.starts_with("00-") && !new.contains("651916cd43dd8448eb211c80319c"),
                "{wrong:?}: {new}"
            );
            assert!(read_trace(&HeaderValue::try_from(new).unwrap()).is_some());
        }
    }

    #[test]
    fn what_was_sent_from_here_is_known_by_its_trace_or_its_parent() {
        let (begun, continued) = (text(&of(&[], "a")), text(&of(&[GIVEN], "a")));
        for sent in [&begun, &continued] {
            assert!(of(&[sent], "a").is_ours(), "{sent}");
            // Another delivery in the same trace is one that the service has caused.
            assert!(!of(&[sent], "b").is_ours(), "{sent}");
            // The next hookgate's requests carry its own parent, and its own number is another.
            let parent = sent.replace(sent.split('-').nth(2).unwrap(), "00f067aa0ba902b7");
            assert_eq!(of(&[&parent], "a").is_ours(), *sent == begun, "{sent}");
        }
        assert!(!of(&[GIVEN], "a").is_ours());
        assert!(!of(&[], "a").is_ours());
    }
}
