//! The trace that a request belongs to (W3C Trace Context, version 00): the sender's, or a new one. Nobody has signed it:
//! of the sender's `traceparent` the trace's ID and the known flags go on, so that requests can be found together, and
//! nothing else.

use hyper::header::HeaderValue;

use super::head::Header;

/// The sender's trace with a new parent, or a new trace, as the `traceparent` that goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trace([u8; 55]);

impl Trace {
    /// Continues the given trace, or begins one.
    pub(super) fn of(given: Header<'_>) -> Self {
        let (trace, flags) = given.once().and_then(read_trace).unwrap_or_else(|| (fastrand::u128(1..), 1));
        let parent = fastrand::u64(1..);
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        for (place, bytes) in
            [(3..35, &trace.to_be_bytes()[..]), (36..52, &parent.to_be_bytes()[..]), (53..55, &[flags][..])]
        {
            let digits = text.get_mut(place).unwrap_or_default();
            hex::encode_to_slice(bytes, digits).expect("each place has two digits for a byte");
        }
        Self(text)
    }

    /// The 32 digits of the trace.
    pub(super) fn id(&self) -> &str {
        self.0.get(3..35).and_then(|digits| str::from_utf8(digits).ok()).unwrap_or_default()
    }

    /// The header for the service.
    pub(super) fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.0).expect("hex digits and hyphens are a header value")
    }
}

/// Trace ID and flags of a well-formed `traceparent`.
fn read_trace(value: &HeaderValue) -> Option<(u128, u8)> {
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
    (trace != 0 && parent != 0).then_some((trace, u8::from_str_radix(flags, 16).ok()? & 0b11))
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::{super::head::Headers, *};

    #[test]
    fn traces_are_continued_or_begun() {
        let trace = |given: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in given {
                headers.append("traceparent", HeaderValue::from_static(value));
            }
            let trace = Trace::of(Headers::find(&headers).traceparent);
            let text = trace.header().to_str().unwrap().to_owned();
            assert_eq!(text.split('-').nth(1), Some(trace.id()));
            text
        };
        const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let continued = trace(&[GIVEN]);
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
            let new = trace(wrong);
            assert!(
                new.starts_with("00-") && !new.contains("651916cd43dd8448eb211c80319c"),
                "{wrong:?}: {new}"
            );
            assert!(read_trace(&HeaderValue::try_from(new).unwrap()).is_some());
        }
    }
}
