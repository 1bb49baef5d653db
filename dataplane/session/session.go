package session

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"
)

const (
	// MaxIDSize is the longest session id. Clients take 15 kB of headers at the worst, ours and others' together.
	MaxIDSize = 8 << 10
	// MaxClientSize bounds the client's info and capabilities together, as JSON.
	MaxClientSize = 2 << 10

	flagPrefixed = 1 << 0
	flagSeveral  = 1 << 1

	maxEncoded = 64 << 10 // no id of any kind is longer; a longer one is not even decoded
)

// Nonce tells one session from all others.
type Nonce [16]byte

// NewNonce returns a random one.
func NewNonce() (n Nonce) {
	_, _ = rand.Read(n[:]) // crypto/rand.Read never returns an error
	return n
}

// Nonce is what proxies find by what they keep for a session. It tells one from all others, and from every session of another caller:
// who has the keys, as a proxy that was broken into has, can seal somebody else's seed for a caller of his own, but not come by
// the same Nonce.
func (s Scope) Nonce(seed Nonce) (n Nonce) {
	var ad [256]byte
	sum := sha256.Sum256(append(additional(ad[:0], kindSession, s), seed[:]...))
	copy(n[:], sum[:])
	return n
}

// State is what a session id holds. It never changes while the session lives: clients fail when their id does.
type State struct {
	// Seed is random, and sealed; see [Scope.Nonce].
	Seed Nonce
	// Nonce is Seed's in the scope. It is not sealed: Decode makes it.
	Nonce Nonce
	// Version is the protocol version of the client's leg.
	Version string
	// ClientInfo and Capabilities are the client's, as JSON: what a target that is added later is told.
	ClientInfo, Capabilities string
	// Prefixed says whether names carry their target's name, to the session's end.
	Prefixed bool
	// Several says that the session began with more than one target, so that URIs carry their target's name.
	Several         bool
	Issued, Expires time.Time // whole seconds
	// Targets that were initialized with the session.
	Targets []Target
	// Owner is the proxy on which a part of the session lives, "" if none does.
	Owner string
	// Caller is who began a session that Scope does not bind to one, and Subject whom the token was about, as policy.Principal's ID and
	// Subject say; else both are "".
	Caller, Subject string
}

// Target is the session at one target.
type Target struct {
	Name string
	// ID is the target's own session id, "" if it gave none.
	ID string
	// Version was negotiated with this target.
	Version string
	// Place is a fingerprint of where the target was: at another place, its session is not sent there.
	Place uint32
}

// Target returns the session at a target, if it was initialized with this one.
func (s *State) Target(name string) (Target, bool) {
	for _, t := range s.Targets {
		if t.Name == name {
			return t, true
		}
	}
	return Target{}, false
}

// SizeError says why a session cannot be sealed, in words for the client.
type SizeError struct{ Reason string }

func (e *SizeError) Error() string { return e.Reason }

// Encode seals a session's state into its id, or returns a [*SizeError].
func (c *Codec) Encode(scope Scope, s State) (string, error) {
	plain, err := s.record()
	if err != nil {
		return "", err
	}
	return c.seal(kindSession, scope, plain), nil
}

// record is what is sealed, unless that is too large.
func (s *State) record() ([]byte, error) {
	if n := len(s.ClientInfo) + len(s.Capabilities); n > MaxClientSize {
		return nil, &SizeError{fmt.Sprintf("clientInfo and capabilities take %d bytes; a session holds at most %d", n, MaxClientSize)}
	}
	flags := byte(0)
	if s.Prefixed {
		flags |= flagPrefixed
	}
	if s.Several {
		flags |= flagSeveral
	}
	plain := make([]byte, 0, 512)
	plain = append(plain, s.Seed[:]...)
	plain = append(plain, flags)
	plain = binary.AppendUvarint(plain, uint64(s.Issued.Unix()))
	plain = binary.AppendUvarint(plain, uint64(s.Expires.Unix()))
	plain = appendString(plain, s.Version)
	plain = appendString(plain, s.Owner)
	plain = appendString(plain, s.ClientInfo)
	plain = appendString(plain, s.Capabilities)
	plain = binary.AppendUvarint(plain, uint64(len(s.Targets)))
	for _, t := range s.Targets {
		plain = appendString(plain, t.Name)
		plain = appendString(plain, t.ID)
		plain = appendString(plain, t.Version)
		plain = binary.AppendUvarint(plain, uint64(t.Place))
	}
	if s.Caller != "" {
		plain = appendString(appendString(plain, s.Caller), s.Subject)
	}
	if n := base64.RawURLEncoding.EncodedLen(len(plain) + overhead); n > MaxIDSize {
		return nil, &SizeError{fmt.Sprintf("the session ids of %d targets make a session id of %d bytes; the limit is %d: serve fewer session-era targets at one endpoint", len(s.Targets), n, MaxIDSize)}
	}
	return plain, nil
}

// Decode returns the state that id was made from, or [ErrInvalid]: an id is good in its own scope alone, and until it
// expires.
func (c *Codec) Decode(scope Scope, id string) (*State, error) {
	if len(id) > MaxIDSize {
		return nil, ErrInvalid
	}
	plain, err := c.open(kindSession, scope, id)
	if err != nil {
		return nil, err
	}
	return stateOf(scope, plain)
}

// stateOf reads a record of a scope, whose session must not have expired.
func stateOf(scope Scope, record []byte) (*State, error) {
	r := reader{rest: string(record)}
	s := &State{}
	copy(s.Seed[:], r.bytes(uint64(len(s.Seed))))
	s.Nonce = scope.Nonce(s.Seed)
	if flags := r.bytes(1); flags != "" {
		s.Prefixed, s.Several = flags[0]&flagPrefixed != 0, flags[0]&flagSeveral != 0
	}
	s.Issued = time.Unix(int64(r.number()), 0)
	s.Expires = time.Unix(int64(r.number()), 0)
	s.Version = r.string()
	s.Owner = r.string()
	s.ClientInfo = r.string()
	s.Capabilities = r.string()
	if n := r.count(4); n > 0 {
		s.Targets = make([]Target, n)
	}
	for i := range s.Targets {
		s.Targets[i] = Target{Name: r.string(), ID: r.string(), Version: r.string(), Place: uint32(r.number())}
	}
	if r.rest != "" {
		s.Caller, s.Subject = r.string(), r.string()
	}
	if !r.done() || !time.Now().Before(s.Expires) {
		return nil, ErrInvalid
	}
	return s, nil
}
