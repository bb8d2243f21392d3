//! When certificates end. Nothing is decided by it: rustls looks at validity itself, and this is to be told in time.

use std::time::SystemTime;

use der::{
    Decode, Reader, SliceReader, Tag, Tagged,
    asn1::{AnyRef, GeneralizedTime, UtcTime},
};
use rustls_pki_types::CertificateDer;

/// When the first of them ends. What cannot be read ends never, as far as anybody can tell.
pub(super) fn earliest(certificates: &[CertificateDer<'_>]) -> Option<SystemTime> {
    certificates.iter().filter_map(|certificate| not_after(certificate).ok()).min()
}

/// What stands before it in a certificate (RFC 5280, 4.1) is only passed over.
fn not_after(certificate: &[u8]) -> der::Result<SystemTime> {
    let mut certificate = sequence(&mut SliceReader::new(certificate)?)?;
    let mut signed = sequence(&mut certificate)?;
    if let Tag::ContextSpecific { .. } = signed.peek_tag()? {
        let _version = AnyRef::decode(&mut signed)?;
    }
    let _serial_number = AnyRef::decode(&mut signed)?;
    let _algorithm = sequence(&mut signed)?;
    let _issuer = sequence(&mut signed)?;
    let mut validity = sequence(&mut signed)?;
    let _not_before = AnyRef::decode(&mut validity)?;
    // From 2050 on it is written with all digits of the year.
    match validity.peek_tag()? {
        Tag::UtcTime => Ok(UtcTime::decode(&mut validity)?.to_system_time()),
        _ => Ok(GeneralizedTime::decode(&mut validity)?.to_system_time()),
    }
}

/// What is in the sequence that comes next.
fn sequence<'d>(reader: &mut SliceReader<'d>) -> der::Result<SliceReader<'d>> {
    let found = AnyRef::decode(reader)?;
    found.tag().assert_eq(Tag::Sequence)?;
    SliceReader::new(found.value())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::net::tls::{Authorities, Certificates};

    /// A certificate that ends on a day.
    fn ends(year: i32, month: u8, day: u8) -> rcgen::Certificate {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(1999, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    fn unix(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_end_is_read_in_either_form_of_time() {
        for ((year, month, day), seconds) in [
            ((2001, 9, 9), 999_993_600),
            ((2027, 1, 15), 1_799_971_200),
            ((2049, 12, 31), 2_524_521_600),
            ((2050, 1, 1), 2_524_608_000),
            ((4096, 1, 1), 67_090_118_400),
        ] {
            assert_eq!(earliest(&[ends(year, month, day).into()]), Some(unix(seconds)), "{year}");
        }
    }

    #[test]
    fn of_several_the_first_to_end_counts() {
        let [late, early, later] = [2031, 2027, 2060].map(|year| ends(year, 1, 15));
        let pem = format!("{}\n# another\n{}{}", late.pem(), early.pem(), later.pem());
        let expected = Some(unix(1_799_971_200));
        assert_eq!(Certificates::parse(pem.as_bytes()).unwrap().expires(), expected);
        assert_eq!(Authorities::parse(pem.as_bytes()).unwrap().expires(), expected);
        // One that cannot be read hides no other, and has no end itself.
        let odd = CertificateDer::from(&b"no certificate"[..]);
        assert_eq!(earliest(&[odd.clone(), early.der().clone(), late.der().clone()]), expected);
        assert_eq!(earliest(&[odd]), None);
        assert_eq!(earliest(&[]), None);
    }

    #[test]
    fn half_a_certificate_has_no_end() {
        let whole = ends(2031, 1, 15).der().to_vec();
        for length in 0..whole.len() {
            assert!(not_after(whole.get(..length).unwrap()).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_ends_before_the_year_10000(at in 0..300_usize, byte: u8, noise: Vec<u8>) {
            let mut certificate = ends(2031, 1, 15).der().to_vec();
            *certificate.get_mut(at).unwrap() = byte;
            for odd in [noise, certificate] {
                prop_assert!(earliest(&[odd.into()]) < Some(unix(253_402_300_800)));
            }
        }
    }
}
