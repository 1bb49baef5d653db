package mcp

// Names that are read.
var (
	envelopeNames = readNames("jsonrpc", "id", "method", "params", "result", "error")
	paramsNames   = readNames("name", "uri", "arguments", "_meta", "cursor", "ref", "level", "taskId", "requestState",
		"inputResponses", "task", "notifications", "protocolVersion", "capabilities", "clientInfo", "progressToken", "requestId")
	refNames  = readNames("type", "name", "uri")
	metaNames = readNames("progressToken", MetaVersion, MetaClientInfo, MetaClientCapabilities, MetaLogLevel, MetaSubscriptionID)
)

// Members of _meta that the protocol reserves.
const (
	MetaVersion            = "io.modelcontextprotocol/protocolVersion"
	MetaClientInfo         = "io.modelcontextprotocol/clientInfo"
	MetaClientCapabilities = "io.modelcontextprotocol/clientCapabilities"
	MetaLogLevel           = "io.modelcontextprotocol/logLevel"
	MetaSubscriptionID     = "io.modelcontextprotocol/subscriptionId"
	MetaServerInfo         = "io.modelcontextprotocol/serverInfo"
	MetaRelatedTask        = "io.modelcontextprotocol/related-task" // of 2025-11-25
)

// Scan reads one JSON-RPC message in one strict pass over the whole body: JSON grammar, UTF-8, nothing after
// the text, the limits. Objects that are read (the envelope, params, _meta, ref) hold no name twice and none
// that equals a read one but for case. Names may be written with escapes.
//
// The error is nil or an [*Error], with the id of the request where that is known; the Message then holds what
// was found and its Kind is [Invalid]. An array is checked as JSON and has Kind [Batch]: see [ScanBatch].
func Scan(body []byte, lim Limits) (m Message, err error) {
	m.Body = body
	if len(body) > lim.MaxBytes() {
		return m, refusal(413, CodeInvalidRequest, "the body has more than %d bytes", lim.MaxBytes())
	}
	s := scanner{b: body, maxDepth: lim.depth()}
	if err := s.message(&m); err != nil {
		m.Kind = Invalid
		return m, err
	}
	return m, nil
}

// ScanBatch reads the elements of a batch, each as [Scan] reads a body; spans of each index its own Body. One
// bad element refuses the batch. An empty batch is refused, as JSON-RPC says.
func ScanBatch(body []byte, lim Limits) ([]Message, error) {
	if len(body) > lim.MaxBytes() {
		return nil, refusal(413, CodeInvalidRequest, "the body has more than %d bytes", lim.MaxBytes())
	}
	s := scanner{b: body, maxDepth: lim.depth()}
	spans, err := s.elements(lim.batch())
	if err != nil {
		return nil, err
	}
	if len(spans) == 0 {
		return nil, refusal(400, CodeInvalidRequest, "the batch is empty")
	}
	batch := make([]Message, len(spans))
	for i, span := range spans {
		m := &batch[i]
		m.Body = span.Of(body)
		one := scanner{b: m.Body, maxDepth: lim.depth()}
		if err := one.message(m); err != nil {
			return nil, refusal(400, CodeInvalidRequest, "element %d of the batch: %s", i, err.Message)
		}
		if m.Kind == Batch {
			return nil, refusal(400, CodeInvalidRequest, "element %d of the batch is a batch", i)
		}
	}
	return batch, nil
}

// elements checks the whole body as JSON and returns where the elements of its array stand.
func (s *scanner) elements(most int) ([]Span, *Error) {
	i := s.ws(0)
	if i >= len(s.b) || s.b[i] != '[' {
		if i = s.end(s.skip(i)); i < 0 {
			return nil, s.syntax
		}
		return nil, refusal(400, CodeInvalidRequest, "the body is no array")
	}
	var spans []Span
	if i = s.open(i, false); i < 0 {
		return nil, s.syntax
	}
	i = s.ws(i)
	for i >= len(s.b) || s.b[i] != ']' {
		if len(spans) > 0 {
			if i >= len(s.b) || s.b[i] != ',' {
				s.fail(i, "',' or ']' is missing")
				return nil, s.syntax
			}
			i = s.ws(i + 1)
		}
		if len(spans) == most {
			return nil, refusal(413, CodeInvalidRequest, "the batch has more than %d elements", most)
		}
		var v Span
		if v, i = s.raw(i); i < 0 {
			return nil, s.syntax
		}
		spans = append(spans, v)
		i = s.ws(i)
	}
	s.depth--
	if s.end(i+1) < 0 {
		return nil, s.syntax
	}
	return spans, nil
}

// message reads the whole text into m.
func (s *scanner) message(m *Message) *Error {
	i := s.ws(0)
	if i < len(s.b) && s.b[i] == '{' {
		i = s.envelope(i, m)
	} else {
		array := i < len(s.b) && s.b[i] == '['
		if i = s.skip(i); array {
			m.Kind = Batch
		} else if i >= 0 {
			s.refuse("a message has to be an object")
		}
	}
	if s.end(i) < 0 {
		return s.syntax
	}
	if s.refused == nil && m.Kind != Batch {
		s.kind(m)
	}
	if s.refused != nil {
		s.refused.ID = idOf(m)
		return s.refused
	}
	return nil
}

// kind sets m.Kind, or refuses what is none of them.
func (s *scanner) kind(m *Message) {
	switch {
	case m.MethodSpan.Present():
		switch {
		case m.Result.Present() || m.Error.Present():
			s.refuse("a message with a method has neither result nor error")
		case !m.ID.Present():
			m.Kind = Notification
		case m.Body[m.ID.Start] == 'n':
			s.refuse("the id of a request must not be null")
		default:
			m.Kind = Request
		}
	case m.Result.Present() && m.Error.Present():
		s.refuse("a response has either result or error")
	case m.Result.Present():
		if m.Kind = Response; !m.HasID() {
			s.refuse("a response with a result has an id")
		}
	case m.Error.Present():
		m.Kind = Response // its id may be null or missing: the request could not be read
	default:
		s.refuse("a message has a method, a result or an error")
	}
}

// idOf is the id that an answer to m can carry: nil where there is none.
func idOf(m *Message) []byte {
	if m.HasID() && !m.Result.Present() && !m.Error.Present() {
		return m.RawID()
	}
	return nil
}

func (s *scanner) envelope(i int, m *Message) int {
	var o object
	i = o.begin(s, i, "the message", envelopeNames)
	version, ids := false, 0
	for i >= 0 {
		name, _, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		var t Text
		switch name {
		case "jsonrpc":
			t, i = s.text(at)
			if version = string(t.Value) == "2.0"; !version {
				s.refuse(`jsonrpc has to be "2.0"`)
			}
		case "id":
			m.ID, i = s.id(at)
			if ids++; ids > 1 {
				m.ID = Span{} // of two ids neither is one to answer with
			}
		case "method":
			t, i = s.text(at)
			m.MethodSpan = t.Span
			if i >= 0 && !t.IsString() {
				s.refuse("method has to be a string")
			}
			m.Method = methodName(t.Value)
		case "params":
			m.Params, i = s.params(at, m)
		case "result":
			if s.result != nil {
				i = s.result(at)
				m.Result = span(at, i)
			} else {
				m.Result, i = s.raw(at)
			}
		case "error":
			m.Error, i = s.raw(at)
			if i >= 0 && s.b[at] != '{' {
				s.refuse("error has to be an object")
			}
		default:
			i = s.skip(at)
		}
	}
	if i >= 0 && !version {
		s.refuse(`jsonrpc is missing; it has to be "2.0"`)
	}
	return i
}

// id scans an id; of another type than ids have, it is none.
func (s *scanner) id(at int) (Span, int) {
	v, i := s.raw(at)
	if i >= 0 {
		switch s.b[at] {
		case '{', '[', 't', 'f':
			s.refuse("an id is a string or a number")
			return Span{}, i
		}
	}
	return v, i
}

func (s *scanner) params(at int, m *Message) (Span, int) {
	if at >= len(s.b) || s.b[at] != '{' {
		v, i := s.raw(at)
		if i >= 0 && s.b[at] != 'n' {
			s.refuse("params has to be an object")
		}
		return v, i
	}
	var o object
	start := at
	i := o.begin(s, at, "params", paramsNames)
	for i >= 0 {
		name, _, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		switch name {
		case "name":
			m.Name, i = s.text(at)
		case "uri":
			m.URI, i = s.text(at)
		case "arguments":
			m.Arguments, i = s.raw(at)
		case "_meta":
			i = s.meta(at, m)
		case "cursor":
			m.Cursor, i = s.text(at)
		case "ref":
			i = s.ref(at, m)
		case "level":
			m.Level, i = s.text(at)
		case "taskId":
			m.TaskID, i = s.text(at)
		case "requestState":
			m.RequestState, i = s.text(at)
		case "inputResponses":
			m.InputResponses, i = s.raw(at)
		case "task":
			m.Task, i = s.raw(at)
		case "notifications":
			m.Filter, i = s.raw(at)
		case "protocolVersion":
			m.Version, i = s.text(at)
		case "capabilities":
			m.Capabilities, i = s.raw(at)
		case "clientInfo":
			m.ClientInfo, i = s.raw(at)
		case "progressToken":
			m.ProgressToken, i = s.raw(at)
		case "requestId":
			m.RequestID, i = s.raw(at)
		default:
			i = s.skip(at)
		}
	}
	return span(start, i), i
}

func (s *scanner) meta(at int, m *Message) int {
	if at >= len(s.b) || s.b[at] != '{' {
		var i int
		m.Meta.Span, i = s.raw(at)
		if i >= 0 {
			s.refuse("params._meta has to be an object")
		}
		return i
	}
	var o object
	start := at
	i := o.begin(s, at, "params._meta", metaNames)
	for i >= 0 {
		name, _, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		switch name {
		case "progressToken":
			m.Meta.ProgressToken, i = s.raw(at)
		case MetaVersion:
			m.Meta.Version, i = s.text(at)
		case MetaClientInfo:
			m.Meta.ClientInfo, i = s.raw(at)
		case MetaClientCapabilities:
			m.Meta.ClientCapabilities, i = s.raw(at)
		case MetaLogLevel:
			m.Meta.LogLevel, i = s.text(at)
		case MetaSubscriptionID:
			m.Meta.SubscriptionID, i = s.raw(at)
		default:
			i = s.skip(at)
		}
	}
	m.Meta.Span = span(start, i)
	return i
}

func (s *scanner) ref(at int, m *Message) int {
	if at >= len(s.b) || s.b[at] != '{' {
		var i int
		m.Ref.Span, i = s.raw(at)
		return i
	}
	var o object
	start := at
	i := o.begin(s, at, "params.ref", refNames)
	for i >= 0 {
		name, _, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		switch name {
		case "type":
			m.Ref.Type, i = s.text(at)
		case "name":
			m.Ref.Name, i = s.text(at)
		case "uri":
			m.Ref.URI, i = s.text(at)
		default:
			i = s.skip(at)
		}
	}
	m.Ref.Span = span(start, i)
	return i
}
