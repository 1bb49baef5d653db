package session

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// CallID tells one call that waits for its client from all others. The zero CallID is that of no call.
type CallID [16]byte

// Call is a call that waits for what its client was asked (`input_required`): what its requestState holds.
type Call struct {
	// Owner is the proxy where the call waits, "" if the call can be gone on with anywhere.
	Owner string
	// ID finds the call at its owner. Zero: nothing waits there; the retry is a call of its own.
	ID CallID
	// Round counts the times that the client was asked, from 1: an older requestState of the same call is no good.
	Round uint64
	// Target is the resource name of the target.
	Target string
	// Digest is over method, name and arguments: the retry must be of the same request.
	Digest [sha256.Size]byte
	// Expires is in whole seconds.
	Expires time.Time
	// State is the target's own requestState, for a call without an ID; HasState tells "" from none.
	State    string
	HasState bool
	// Answered says that the answers are for the proxy alone: the target is not shown them.
	Answered bool
}

const (
	flagState    = 1 << 0
	flagAnswered = 1 << 1
)

// SealCall returns a requestState. It is good for the scope's caller alone, until it expires.
func (c *Codec) SealCall(scope Scope, call Call) string {
	flags := byte(0)
	if call.HasState {
		flags |= flagState
	}
	if call.Answered {
		flags |= flagAnswered
	}
	plain := make([]byte, 0, 192+len(call.State))
	plain = append(plain, call.ID[:]...)
	plain = append(plain, flags)
	plain = binary.AppendUvarint(plain, call.Round)
	plain = binary.AppendUvarint(plain, uint64(call.Expires.Unix()))
	plain = append(plain, call.Digest[:]...)
	plain = appendString(plain, call.Owner)
	plain = appendString(plain, call.Target)
	plain = appendString(plain, call.State)
	return c.seal(kindCall, scope, plain)
}

// OpenCall returns what SealCall was given, or [ErrInvalid], also for one that has expired.
func (c *Codec) OpenCall(scope Scope, state string) (Call, error) {
	plain, err := c.open(kindCall, scope, state)
	if err != nil {
		return Call{}, err
	}
	r := reader{rest: string(plain)}
	var call Call
	copy(call.ID[:], r.bytes(uint64(len(call.ID))))
	if flags := r.bytes(1); flags != "" {
		call.HasState, call.Answered = flags[0]&flagState != 0, flags[0]&flagAnswered != 0
	}
	call.Round = r.number()
	call.Expires = time.Unix(int64(r.number()), 0)
	copy(call.Digest[:], r.bytes(uint64(len(call.Digest))))
	call.Owner, call.Target, call.State = r.string(), r.string(), r.string()
	if !r.done() || !time.Now().Before(call.Expires) {
		return Call{}, ErrInvalid
	}
	return call, nil
}
