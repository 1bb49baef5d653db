package session

import (
	"encoding/binary"
	"strconv"
)

// Cursor is a place in a merged list: the pages that come next, one for each target that has more.
type Cursor struct {
	// Epoch names the targets that the list was begun with; the caller refuses a cursor of others.
	Epoch string
	Parts []Part
	// Private says that a page before was for its caller alone: so are all of one list.
	Private bool
}

// Part is where one target's list goes on.
type Part struct {
	Target string
	// Cursor is the target's own; "" is a valid one.
	Cursor string
}

// SealCursor returns an opaque cursor for clients. It is good for every session of the scope.
func (c *Codec) SealCursor(scope Scope, cur Cursor) string {
	plain := make([]byte, 0, 128)
	plain = appendString(plain, cur.Epoch)
	plain = binary.AppendUvarint(plain, uint64(len(cur.Parts)))
	for _, p := range cur.Parts {
		plain = appendString(plain, p.Target)
		plain = appendString(plain, p.Cursor)
	}
	plain = append(plain, flag(cur.Private))
	return c.seal(kindCursor, scope, plain)
}

// OpenCursor returns what SealCursor was given, or [ErrInvalid].
func (c *Codec) OpenCursor(scope Scope, cursor string) (Cursor, error) {
	plain, err := c.open(kindCursor, scope, cursor)
	if err != nil {
		return Cursor{}, err
	}
	r := reader{rest: string(plain)}
	cur := Cursor{Epoch: r.string()}
	for range r.count(2) {
		cur.Parts = append(cur.Parts, Part{Target: r.string(), Cursor: r.string()})
	}
	cur.Private = r.bytes(1) == "\x01"
	if !r.done() {
		return Cursor{}, ErrInvalid
	}
	return cur, nil
}

// Request is a request that a target made of the client, waiting for its answer.
type Request struct {
	Target string
	// Session is the target's session id that the answer belongs to.
	Session string
	// ID is the target's own request id, as raw JSON: `0`, `"a"`, `9007199254740993`.
	ID string
}

// SealRequest returns the id under which the client sees a target's request, always the same for the same request, so
// that the target's cancellation names it. It is good within one session.
func (c *Codec) SealRequest(scope Scope, n Nonce, r Request) string {
	plain := make([]byte, 0, 128)
	plain = append(plain, n[:]...)
	plain = appendString(plain, r.Target)
	plain = appendString(plain, r.Session)
	plain = appendString(plain, r.ID)
	return c.sealSame(kindRequest, scope, plain)
}

// OpenRequest returns what SealRequest was given, or [ErrInvalid].
func (c *Codec) OpenRequest(scope Scope, n Nonce, id string) (Request, error) {
	r, err := c.inSession(kindRequest, scope, n, id)
	if err != nil {
		return Request{}, err
	}
	req := Request{Target: r.string(), Session: r.string(), ID: r.string()}
	if !r.done() {
		return Request{}, ErrInvalid
	}
	return req, nil
}

// Event is a target's event id.
type Event struct {
	Target string
	// ID as the target gave it. In a position: the last one seen.
	ID string
}

// Position is a place in a stream: one event for the stream of one POST, one for each target on the merged GET stream.
type Position struct {
	// Merged is true for the GET stream. Else Events is the one whose stream a Last-Event-ID resumes.
	Merged bool
	Events []Event
	// Asked is the raw id of the request whose stream it is; "" for a merged one, and where an earlier release sealed it.
	Asked string
}

// SealPosition returns an event id for clients. It is good within one session.
func (c *Codec) SealPosition(scope Scope, n Nonce, p Position) string {
	plain := make([]byte, 0, 128)
	plain = append(plain, n[:]...)
	plain = append(plain, flag(p.Merged))
	plain = binary.AppendUvarint(plain, uint64(len(p.Events)))
	for _, e := range p.Events {
		plain = appendString(plain, e.Target)
		plain = appendString(plain, e.ID)
	}
	if p.Asked != "" {
		plain = appendString(plain, p.Asked)
	}
	return c.seal(kindEvent, scope, plain)
}

// OpenPosition returns what SealPosition was given, or [ErrInvalid].
func (c *Codec) OpenPosition(scope Scope, n Nonce, id string) (Position, error) {
	r, err := c.inSession(kindEvent, scope, n, id)
	if err != nil {
		return Position{}, err
	}
	p := Position{Merged: r.bytes(1) == "\x01"}
	for range r.count(2) {
		p.Events = append(p.Events, Event{Target: r.string(), ID: r.string()})
	}
	if r.rest != "" {
		p.Asked = r.string()
	}
	if !r.done() {
		return Position{}, ErrInvalid
	}
	return p, nil
}

// Stream is the stream of a client of HTTP+SSE (2024-11-05), which lives on one proxy.
type Stream struct {
	// Owner is the proxy.
	Owner string
	// ID tells it from all others there.
	ID Nonce
}

// SealStream returns what the client sends its messages with.
func (c *Codec) SealStream(scope Scope, s Stream) string {
	return c.seal(kindStream, scope, append(appendString(nil, s.Owner), s.ID[:]...))
}

// OpenStream returns what SealStream was given, or [ErrInvalid].
func (c *Codec) OpenStream(scope Scope, id string) (s Stream, err error) {
	plain, err := c.open(kindStream, scope, id)
	if err != nil {
		return Stream{}, err
	}
	r := reader{rest: string(plain)}
	s.Owner = r.string()
	copy(s.ID[:], r.bytes(uint64(len(s.ID))))
	if !r.done() {
		return Stream{}, ErrInvalid
	}
	return s, nil
}

// Task is a task that a target made for the client.
type Task struct {
	Target string
	// Tool is the tool whose call made it, as the target knows it; "" if that is not known, or does not matter.
	Tool string
	// ID is the target's own id of the task.
	ID string
}

// SealTask returns the id under which the client sees a target's task, always the same for the same task: clients tell by it
// which of their tasks a message is about. It is good for every session of the scope, since tasks outlive sessions.
func (c *Codec) SealTask(scope Scope, t Task) string {
	plain := make([]byte, 0, 128)
	plain = appendString(plain, t.Target)
	plain = appendString(plain, t.Tool)
	plain = appendString(plain, t.ID)
	return c.sealSame(kindTask, scope, plain)
}

// OpenTask returns what SealTask was given, or [ErrInvalid].
func (c *Codec) OpenTask(scope Scope, id string) (Task, error) {
	plain, err := c.open(kindTask, scope, id)
	if err != nil {
		return Task{}, err
	}
	r := reader{rest: string(plain)}
	t := Task{Target: r.string(), Tool: r.string(), ID: r.string()}
	if !r.done() {
		return Task{}, ErrInvalid
	}
	return t, nil
}

// inSession opens an id that belongs to one session and returns the record behind the session's nonce.
func (c *Codec) inSession(k kind, scope Scope, n Nonce, id string) (reader, error) {
	plain, err := c.open(k, scope, id)
	if err != nil {
		return reader{}, err
	}
	r := reader{rest: string(plain)}
	if r.bytes(uint64(len(n))) != string(n[:]) {
		return reader{}, ErrInvalid
	}
	return r, nil
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// String shows the start of the nonce: enough to tell sessions apart while debugging, too little to be one.
func (n Nonce) String() string { return strconv.FormatUint(uint64(binary.BigEndian.Uint16(n[:])), 16) }
