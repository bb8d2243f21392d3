//! Payloads: the first line is the kind, the rest is the body.
//!
//! Promise: nothing panics; what is accepted is JSON to another reader, too; and a kind is taken for proven exactly
//! when a plain reading of the whole document says so.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use hookgate::webhook::{
    event::{Event, Field, Kind, MARKERS, Mark},
    headers::{DeliveryId, EventKind},
    payload::{Agreement, Delivery, Mismatch, PayloadError, Tag},
    secret::Secret,
    signature::{Key, Signature, VerifiedBody, Verifier, sign},
};
use serde_json::Value;

/// Judges one input.
pub fn run(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (kind, body) = (&bytes[..end], &bytes[end + 1..]);
    let Ok(kind) = EventKind::parse(kind) else { return };
    let id = DeliveryId::parse(b"fuzz").expect("it follows the grammar");
    let verified = verified(body);
    let identified = Delivery::identify(&verified, id, kind);

    let text = str::from_utf8(body);
    assert_eq!(identified.as_ref().is_err_and(|error| *error == PayloadError::NotUtf8), text.is_err());
    let (Ok(delivery), Ok(text)) = (identified, text) else { return };
    assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "not JSON");
    // A tree of values has limits that reading past members does not have: depth, and the size of numbers.
    let Ok(value) = serde_json::from_str::<Value>(text) else { return };
    assert!(value.is_object());

    if let Some(fields) = Kind::find(kind.as_str()).and_then(|known| known.fields) {
        let proven = agrees(&value, fields, kind.as_str() == "ping");
        assert_eq!(delivery.agreement == Agreement::Proven, proven, "{:?}", delivery.agreement);
    } else if Event::find(kind.as_str()).is_some_and(|event| event.is_published()) {
        assert_eq!(delivery.agreement, Agreement::Differs(Mismatch::FilterName));
    } else {
        assert_eq!(delivery.agreement, Agreement::Unpublished);
    }
    assert_eq!(delivery.organization(), value["organization"]["githubLogin"].as_str());
    match delivery.tag() {
        Tag::Named(tag) => assert_eq!(value["tagName"].as_str(), Some(tag)),
        Tag::None => assert!(value["tagName"].is_null()),
        Tag::Unreadable => assert!(!value["tagName"].is_string()),
    }
    let environment = value["projectName"].as_str().zip(value["environmentName"].as_str());
    assert_eq!(delivery.environment(), environment);
    if let Some(event) = delivery.event() {
        assert!(!matches!(delivery.agreement, Agreement::Differs(_)), "{} is claimed", event.name);
        assert!(shows(event, kind.as_str(), &value), "{} is not told by it", event.name);
    }
}

/// Signs the body and has it verified: there is no other way to get the proof.
fn verified(body: &[u8]) -> VerifiedBody {
    let secret = Secret::try_new(b"fuzz-secret-of-payloads".into(), false).expect("it is long enough");
    let signature = Signature::parse(sign(&secret, body).as_bytes()).expect("it was made just now");
    let verifier = Verifier::new(vec![Key::new("fuzz".into(), &secret, None)]);
    verifier
        .verify(Bytes::copy_from_slice(body), &signature, UNIX_EPOCH)
        .expect("it was signed just now")
        .body
}

/// Whether the document has every field of the kind and no mark of another.
fn agrees(value: &Value, fields: &[Field], ping: bool) -> bool {
    fields.iter().all(|field| fits(*field, &value[field.name()]))
        && MARKERS
            .iter()
            .all(|marker| fields.iter().any(|f| f.name() == marker.name()) || value[marker.name()].is_null())
        && (ping || value["organization"]["githubLogin"].is_string())
}

fn fits(field: Field, value: &Value) -> bool {
    let integer = |value: &Value| value.is_i64() || value.is_u64();
    match field {
        Field::Revision | Field::Version | Field::Timestamp => integer(value),
        Field::AffectedRevisions => value.as_array().is_some_and(|items| items.iter().all(integer)),
        Field::ImportedEnvironmentReference => {
            value["projectName"].is_string()
                && value["environmentName"].is_string()
                && integer(&value["revision"])
        }
        Field::ResourceChanges => value.as_object().is_some_and(|counts| counts.values().all(integer)),
        Field::IsPreview(only) => value.as_bool() == Some(only),
        Field::DriftDetected => value.is_boolean(),
        Field::ProjectName
        | Field::EnvironmentName
        | Field::StackName
        | Field::Action
        | Field::TagName
        | Field::UpdateUrl
        | Field::Kind
        | Field::Result
        | Field::DeploymentUrl
        | Field::Operation
        | Field::Status
        | Field::DriftRunId
        | Field::ReferenceUrl
        | Field::Message => value.is_string(),
    }
}

fn shows(event: &Event, kind: &str, value: &Value) -> bool {
    let is = |name: &str, text: &str| value[name].as_str() == Some(text);
    match event.mark {
        Mark::Unpublished => {
            event.name == kind
                || ["action", "result", "status"]
                    .iter()
                    .filter_map(|name| value[name].as_str())
                    .any(|end| event.name == format!("{kind}_{end}"))
        }
        _ if event.kind != Some(kind) => false,
        Mark::Kind => true,
        Mark::Action(action) => is("action", action),
        Mark::Result(result) => is("result", result),
        Mark::Operation(operation, result) => is("kind", operation) && is("result", result),
        Mark::Status(values) => values.iter().any(|status| is("status", status)),
        Mark::DriftDetected => value["driftDetected"] == true,
    }
}
