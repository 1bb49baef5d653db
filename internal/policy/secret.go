package policy

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
)

// A Secret holds a value that shows nowhere by accident: however it is printed, logged or marshalled, it
// reads `[redacted]`. The zero value is the empty secret.
type Secret struct{ value string }

const redacted = "[redacted]"

// NewSecret wraps value.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the value, for the one place that sends it.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether there is no value.
func (s Secret) IsZero() bool { return s.value == "" }

func (s Secret) String() string               { return redacted }
func (s Secret) GoString() string             { return redacted }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Format redacts for every verb; without it, a wrong verb such as %d would show the value.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }
