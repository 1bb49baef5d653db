package mcp

// Kind tells what a JSON-RPC message is.
type Kind uint8

// Kinds of messages.
const (
	Invalid      Kind = iota // nothing was recognised
	Request                  // method and id
	Notification             // method without id
	Response                 // result or error
	Batch                    // an array; see [ScanBatch]
)

// String is the kind's name in lower case.
func (k Kind) String() string {
	switch k {
	case Request:
		return "request"
	case Notification:
		return "notification"
	case Response:
		return "response"
	case Batch:
		return "batch"
	default:
		return "invalid"
	}
}

// Limits bound what a peer may send. The zero value means the defaults.
type Limits struct {
	Bytes int // of a body; if zero, 16 MiB; never more than 2 GiB - 1
	Depth int // of nested arrays and objects, the body's own included; if zero, 256; never more than 1024
	Batch int // elements of a batch; if zero, 100
}

const (
	defaultBytes = 16 << 20
	defaultDepth = 256
	defaultBatch = 100
	maxBytes     = 1<<31 - 1
	maxDepth     = 1024
)

// MaxBytes is how long a body may be.
func (l Limits) MaxBytes() int { return limit(l.Bytes, defaultBytes, maxBytes) }
func (l Limits) depth() int    { return limit(l.Depth, defaultDepth, maxDepth) }
func (l Limits) batch() int    { return limit(l.Batch, defaultBatch, maxBytes) }

func limit(n, zero, most int) int {
	if n <= 0 {
		n = zero
	}
	return min(n, most)
}

// A Span is where a JSON value stands in a body: the value's own bytes, quotes included, without white space
// around it. The zero Span means that there is no such value.
type Span struct{ Start, End int32 }

// Present reports whether there is a value.
func (s Span) Present() bool { return s.End > s.Start }

// Of returns the value's bytes in the body that was scanned; nil if there is none.
func (s Span) Of(body []byte) []byte {
	if s.End <= s.Start {
		return nil
	}
	return body[s.Start:s.End:s.End]
}

// Text is a value that should be a string.
type Text struct {
	Span  Span   // the raw value, whatever its type; zero: absent
	Value []byte // the decoded string, aliasing the body where it has no escapes; nil unless it is a string
}

// Present reports whether there is a value, of whatever type.
func (t Text) Present() bool { return t.Span.Present() }

// IsString reports whether there is a value and it is a string, perhaps an empty one.
func (t Text) IsString() bool { return t.Value != nil }

// String copies the decoded value; "" if it is absent or no string.
func (t Text) String() string { return string(t.Value) }

// A Message is one JSON-RPC message as [Scan] read it. Spans index Body. What a message lacks is zero.
type Message struct {
	Kind   Kind
	Body   []byte // what was scanned
	Method string // decoded; requests and notifications
	ID     Span   // exact bytes: a string, a number, or null in an error response

	MethodSpan Span // of the method's value
	Params     Span // an object, or null
	Result     Span // any value
	Error      Span // an object

	// Members of params. Which of them mean something depends on the method: see [MethodInfo].
	Name         Text // tools/call, prompts/get; also the name of any other method's params
	URI          Text // resources/read, resources/subscribe, notifications/resources/updated, …
	Cursor       Text // lists
	Level        Text // logging/setLevel
	TaskID       Text // tasks/*
	RequestState Text // a retry after input_required
	Version      Text // initialize: protocolVersion
	Ref          Ref  // completion/complete

	Arguments      Span // raw; nothing in it was read but its grammar
	InputResponses Span // a retry after input_required
	Task           Span // tools/call at 2025-11-25 that asks for a task
	Filter         Span // subscriptions/listen and its acknowledgement: notifications
	Capabilities   Span // initialize
	ClientInfo     Span // initialize
	ProgressToken  Span // notifications/progress; that of a request stands in Meta
	RequestID      Span // notifications/cancelled
	Meta           Meta
}

// Ref is params.ref of completion/complete.
type Ref struct {
	Span            Span
	Type, Name, URI Text
}

// Meta is params._meta.
type Meta struct {
	Span               Span // the object
	ProgressToken      Span // raw: string or number
	Version            Text // io.modelcontextprotocol/protocolVersion
	LogLevel           Text // io.modelcontextprotocol/logLevel
	ClientInfo         Span // io.modelcontextprotocol/clientInfo
	ClientCapabilities Span // io.modelcontextprotocol/clientCapabilities
	SubscriptionID     Span // io.modelcontextprotocol/subscriptionId: raw id of the subscriptions/listen request
}

// Info is what is known of the message's method; the zero MethodInfo (Routing Unknown) for a method that no
// revision has.
func (m *Message) Info() MethodInfo { return Methods(m.Method) }

// HasID reports whether m has an id that is one: an error may come without (JSON-RPC section 5), or with null.
func (m *Message) HasID() bool { return m.ID.Present() && m.Body[m.ID.Start] != 'n' }

// RawID returns the id's bytes; nil if there is none.
func (m *Message) RawID() []byte { return m.ID.Of(m.Body) }
