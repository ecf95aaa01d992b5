"""Every message that crosses a process, as JSON.

Structs are frozen, unknown fields are ignored, and a new field has a default, so that any NATS client in any
language can talk to any version of the fleet. Field names follow the OpenAI API where it has the concept.
Times are Unix seconds; durations end in `_s`.
"""
