# What the OPA of compose.yaml decides: `guardrails.opa_endpoint` asks it about every prompt. docs/AdminGuide.md says what
# `input` holds.
package inferflux

import rego.v1

default allow := true
