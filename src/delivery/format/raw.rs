//! `raw`: as it came. Nothing that the sender sent goes on but the verified bytes and the headers that are named in the
//! parcel.

use std::borrow::Cow;

use super::{Meaning, Parcel, Rendered};

/// The request. It cannot fail, and copies nothing.
pub(super) fn render(parcel: &Parcel) -> Rendered<'_> {
    Rendered {
        content_type: parcel.content_type.as_str(),
        carries_delivery: true,
        headers: Vec::new(),
        body: Cow::Borrowed(parcel.body.bytes()),
    }
}

/// What a service of the operator's means by a status: some speak of the moment and not of the delivery.
pub(super) const fn judge(status: u16) -> Meaning {
    match status {
        200..=299 => Meaning::Delivered,
        408 | 425 | 429 | 500..=599 => Meaning::Later,
        _ => Meaning::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statuses_of_the_moment_are_worth_another_try() {
        let are = |meaning| (100..600).filter(|status| judge(*status) == meaning).collect::<Vec<u16>>();
        assert_eq!(are(Meaning::Delivered), (200..300).collect::<Vec<_>>());
        assert_eq!(are(Meaning::Later), [408, 425, 429].into_iter().chain(500..600).collect::<Vec<_>>());
    }
}
