// Package credential obtains the tokens that the proxy shows to targets: from clouds, by the vendors' own libraries, and from
// OAuth token endpoints. It keeps them while they are good and gets new ones before they expire.
//
// It knows no policy: a [Source] is one credential that could be had, a [Store] keeps what sources gave.
package credential

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// A Token is what a source gave: a bearer token, or the keys of an AWS session. However it is printed, it shows nothing.
type Token struct {
	value string
	keys  aws.Credentials
	// Expires is when the issuer says that it ends. Zero: he did not say.
	Expires time.Time
}

// size is how many bytes t takes, beside its own words.
func (t Token) size() int {
	return len(t.value) + len(t.keys.AccessKeyID) + len(t.keys.SecretAccessKey) + len(t.keys.SessionToken) + len(t.keys.Source) + len(t.keys.AccountID)
}

// Reveal returns the bearer token, for the one place that sends it. Empty for keys of AWS.
func (t Token) Reveal() string { return t.value }

// Format redacts for every verb.
func (t Token) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue redacts.
func (t Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON redacts.
func (t Token) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

const redacted = "[redacted]"

// A Key names a credential. It is a digest of all that the credential depends on, secrets included, so that a
// configuration that differs in anything never meets another's token.
type Key [sha256.Size]byte

func keyOf(parts ...string) Key {
	h := sha256.New()
	var size [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(size[:], uint64(len(p)))
		h.Write(size[:])
		io.WriteString(h, p)
	}
	return Key(h.Sum(nil))
}

// A Scope is whose credentials a source obtains, and how it may reach their issuers.
type Scope struct {
	// Tenant owns the configuration. No token is ever shared by two.
	Tenant string
	// Powers is all that the tenant may do; a token obtained under others is not used.
	Powers string
	// Dial connects within those powers.
	Dial DialFunc
	// Identity connects as Dial does, and also to the addresses where the cloud whose identity the proxy has hands out
	// credentials. Nil: the tenant has no part in that identity.
	Identity DialFunc
}

// A Source can obtain one credential. It is immutable and holds its secrets where nothing prints them.
type Source struct {
	tenant string
	key    Key
	group  Key // shared by sources that ask the same issuer with the same configuration, for different callers
	fetch  func(context.Context) (Token, error)
}

func (s Scope) source(fetch func(context.Context) (Token, error), parts ...string) *Source {
	key := keyOf(append([]string{s.Tenant, s.Powers}, parts...)...)
	return &Source{tenant: s.Tenant, key: key, group: key, fetch: fetch}
}

// forCaller is a source whose key also depends on parts, which differ from caller to caller.
func (s Scope) forCaller(group Key, fetch func(context.Context) (Token, error), parts ...string) *Source {
	return &Source{tenant: s.Tenant, group: group, key: keyOf(append([]string{string(group[:])}, parts...)...), fetch: fetch}
}

// refusedError is an issuer's own no to what was asked: that of one caller says nothing of another's.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// clean makes an error of a library or an issuer fit for a log line: one line, short, and without the given secrets, should
// somebody echo them.
func clean(text string, secrets ...string) string {
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, redacted)
		}
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xfffd }), " ")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return text
}

const maxErrorText = 400

// cleanError is err with a clean text. It wraps nothing: who prints the cause of a library's error may print a request.
func cleanError(err error, secrets ...string) error {
	return errors.New(clean(err.Error(), secrets...))
}

func isRefusal(err error) bool {
	_, ok := errors.AsType[*refusedError](err)
	return ok
}
