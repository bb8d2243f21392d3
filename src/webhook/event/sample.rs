//! Bodies as Pulumi would send them, for `send`, `demo` and the tests.

use super::{Event, Field, Kind, Mark, PING};

impl Event {
    /// The kind that a sample of this event carries. Where none is published it is the filter's own name, which is
    /// a guess that [`Mark::Unpublished`] matches.
    #[must_use]
    pub fn sample_kind(&self) -> &'static str {
        self.kind.unwrap_or(self.name)
    }

    /// A body as Pulumi would send it: compact JSON, members in Pulumi's order, values of the published examples.
    #[must_use]
    pub fn sample_body(&self) -> String {
        const ORGANIZATION: &str = concat!(
            r#""user":{"name":"Morty Smith","githubLogin":"morty","#,
            r#""avatarUrl":"https://crazy-adventures.net/morty.png"},"#,
            r#""organization":{"name":"Crazy Adventures","githubLogin":"crazy-adventures","#,
            r#""avatarUrl":"https://crazy-adventures.net/logo.png"}"#,
        );
        /// What an unpublished body is guessed to hold.
        const GUESSED: &[Field] = &[Field::ProjectName, Field::EnvironmentName];

        let fields = Kind::find(self.sample_kind()).and_then(|kind| kind.fields).unwrap_or(GUESSED);
        let mut members = Vec::with_capacity(fields.len() + 2);
        if self.name != PING {
            members.push(ORGANIZATION.to_owned());
        }
        members.extend(fields.iter().map(|field| {
            let value = self.mark.value_of(*field).unwrap_or_else(|| field.sample().to_owned());
            format!("\"{}\":{value}", field.name())
        }));
        if self.kind.is_some() && !self.is_published() {
            let ending = self.name.rsplit('_').next().unwrap_or_default();
            members.push(format!("\"action\":\"{ending}\""));
        }
        format!("{{{}}}", members.join(","))
    }
}

impl Field {
    /// A value as Pulumi's published examples have it, as JSON.
    const fn sample(self) -> &'static str {
        match self {
            Self::ProjectName => "\"website\"",
            Self::EnvironmentName => "\"prod\"",
            Self::StackName => "\"website-prod\"",
            Self::Action => "\"created\"",
            Self::Revision => "5",
            Self::TagName => "\"stable\"",
            Self::AffectedRevisions => "[2,5,6,7]",
            Self::ImportedEnvironmentReference => {
                r#"{"projectName":"website","environmentName":"base","revision":10}"#
            }
            Self::UpdateUrl => "\"https://app.pulumi.com/crazy-adventures/website/website-prod/updates/42\"",
            Self::Kind | Self::Operation => "\"update\"",
            Self::Result | Self::Status => "\"succeeded\"",
            Self::ResourceChanges => r#"{"update":3,"delete":1}"#,
            Self::IsPreview(true) => "true",
            Self::IsPreview(false) | Self::DriftDetected => "false",
            Self::DeploymentUrl | Self::ReferenceUrl => {
                "\"https://app.pulumi.com/crazy-adventures/website/website-prod/deployments/127\""
            }
            Self::Version => "127",
            Self::DriftRunId => "\"11bf162b-d9d5-4715-8f88-20dcd0e0b167\"",
            Self::Timestamp => "1778653144",
            Self::Message => "\"🍹 Just a friendly ping from Pulumi 🍹\"",
        }
    }
}

impl Mark {
    /// What the mark says about a member, as JSON.
    fn value_of(self, field: Field) -> Option<String> {
        let text = |value: &str| Some(format!("\"{value}\""));
        match (self, field) {
            (Self::Action(value), Field::Action)
            | (Self::Result(value) | Self::Operation(_, value), Field::Result)
            | (Self::Operation(value, _), Field::Kind) => text(value),
            (Self::Status(values), Field::Status) => values.first().and_then(|value| text(value)),
            (Self::DriftDetected, Field::DriftDetected) => Some("true".into()),
            _ => None,
        }
    }
}
