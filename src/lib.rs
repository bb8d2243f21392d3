//! hookgate, the verifying sidecar for Pulumi webhooks.
