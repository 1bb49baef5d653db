package mcp

import (
	"net/http"
	"slices"
	"strings"
)

// An Exchange is what [Classify] decides on.
type Exchange struct {
	HTTPMethod string
	Header     http.Header
	Message    *Message   // of a POST; nil else. Its Kind may be Batch
	Batch      []Message  // its elements, where it is a batch
	Serves     []Revision // what the endpoint serves; nil: every revision
}

// Action is what an exchange is, once its era is known.
type Action uint8

// The actions.
const (
	Refused     Action = iota
	Call               // stateless: a POST that stands alone
	Initialize         // sessions: a POST that begins a session
	SessionPost        // sessions: a POST in one
	SessionGet         // sessions: the standing stream, or one that is resumed
	SessionEnd         // sessions: DELETE
)

// A Verdict says how an exchange is served.
type Verdict struct {
	Action Action
	Era    Era
	// Revision is the exchange's own: on Initialize the one to answer with; in a session what the header says,
	// and 2025-03-26 where there is none. The session's own record knows better: let that one decide.
	Revision Revision
	Session  string // sessions: Mcp-Session-Id as sent, not yet checked
	LastID   string // SessionGet: Last-Event-ID
}

// Classify tells the eras apart and refuses what neither has. The order matters: what names a stateless
// revision is judged as such, whatever else it carries. The error is nil or an [*Error] with the status, code
// and id to answer with.
//
// Not checked here: Origin and Host, Accept and Content-Type of a POST, whether the session exists, and the
// session's own revision.
func Classify(x Exchange) (Verdict, error) {
	v, err := classify(x)
	if err == nil {
		return v, nil
	}
	if x.Message != nil && err.ID == nil {
		err.ID = idOf(x.Message)
	}
	return Verdict{}, err
}

func classify(x Exchange) (Verdict, *Error) {
	versions := x.Header.Values(HeaderVersion)
	if len(versions) > 1 {
		return Verdict{}, refusal(400, CodeHeaderMismatch, "%s was sent %d times", HeaderVersion, len(versions))
	}
	version := Revision(strings.Trim(x.Header.Get(HeaderVersion), " \t"))
	switch {
	case x.HTTPMethod == http.MethodPost && x.Message != nil:
		if modern(version) || x.Message.Meta.Version.Present() || !x.servesSessions() && x.Message.Method != "initialize" {
			return x.stateless(version)
		}
		return x.session(version)
	case x.HTTPMethod == http.MethodGet, x.HTTPMethod == http.MethodDelete:
		return x.stream(version)
	default:
		err := refusal(405, CodeInvalidRequest, "the MCP endpoint takes no %s", clip([]byte(x.HTTPMethod)))
		err.Allow = x.allow()
		return Verdict{}, err
	}
}

// modern reports whether a version header names the stateless era, known or yet to come. Dates compare as
// strings; what is no date belongs to no era.
func modern(r Revision) bool { return isDate(r) && r >= V20260728 }

func isDate(r Revision) bool {
	if len(r) != len(V20260728) {
		return false
	}
	for i := range len(r) {
		if dash := i == 4 || i == 7; dash != (r[i] == '-') || !dash && (r[i] < '0' || r[i] > '9') {
			return false
		}
	}
	return true
}

// stateless judges a POST of the stateless era.
func (x Exchange) stateless(version Revision) (Verdict, *Error) {
	m := x.Message
	v := Verdict{Action: Call, Era: Stateless, Revision: version}
	switch m.Kind {
	case Batch:
		return v, refusal(400, CodeInvalidRequest, "%s has no batches: send one message for each POST", version)
	case Response:
		return v, refusal(400, CodeInvalidRequest, "%s: clients send no responses; answers go into inputResponses", version)
	case Notification: // the revision defines no header rules for it
		if v.Revision == "" {
			v.Revision = Revision(m.Meta.Version.Value)
		}
		if !x.serves(v.Revision) {
			return v, x.unsupported(v.Revision)
		}
		return v, nil
	}
	switch {
	case version == "":
		return v, refusal(400, CodeHeaderMismatch, "the %s header is missing; the body says %q", HeaderVersion, clip(m.Meta.Version.Value))
	case m.Meta.Version.IsString() && string(m.Meta.Version.Value) != string(version):
		return v, refusal(400, CodeHeaderMismatch, "%s is %q, but the body says %q", HeaderVersion, clip([]byte(version)), clip(m.Meta.Version.Value))
	case !m.Meta.Version.Present() && x.serves(version) && !version.MethodAllowed(m.Method):
		// An initialize never has it: its sender wants to hear that it is in the wrong era.
		return v, refusal(404, CodeMethodNotFound, "%s has no method %q", version, clip([]byte(m.Method)))
	case !m.Meta.Version.IsString():
		return v, missingMeta(m.Meta.Version.Present(), MetaVersion, "a string")
	case !x.serves(version):
		return v, x.unsupported(version)
	}
	if err := checkMethodHeader(x.Header, m); err != nil {
		return v, err
	}
	if !version.MethodAllowed(m.Method) || m.Info().Notification {
		return v, refusal(404, CodeMethodNotFound, "%s has no method %q", version, clip([]byte(m.Method)))
	}
	caps := m.Meta.ClientCapabilities.Of(m.Body)
	if len(caps) == 0 || caps[0] != '{' {
		return v, missingMeta(len(caps) > 0, MetaClientCapabilities, "an object")
	}
	if err := checkNameHeader(x.Header, m); err != nil {
		return v, err
	}
	return v, nil
}

func missingMeta(present bool, name, kind string) *Error {
	problem := "is missing"
	if present {
		problem = "has to be " + kind
	}
	return refusal(400, CodeInvalidParams, "params._meta[%q] %s", name, problem)
}

// session judges a POST of the session era.
func (x Exchange) session(version Revision) (Verdict, *Error) {
	m, id := x.Message, x.Header.Get(HeaderSession)
	v := Verdict{Era: Sessions, Revision: version, Session: id}
	if len(x.Header.Values(HeaderSession)) > 1 {
		return v, refusal(400, CodeInvalidRequest, "%s was sent more than once", HeaderSession)
	}
	if m.Kind == Request && m.Method == "initialize" {
		if id != "" {
			return v, refusal(400, CodeInvalidRequest, "initialize begins a session: send it without %s", HeaderSession)
		}
		if !m.Version.IsString() {
			return v, refusal(400, CodeInvalidParams, "initialize needs params.protocolVersion, a string")
		}
		v.Action, v.Revision = Initialize, Negotiate(Revision(m.Version.Value), x.Serves)
		if v.Revision == "" {
			return v, x.unsupported(Revision(m.Version.Value))
		}
		return v, nil
	}
	v, err := x.inSession(v)
	if err != nil {
		return v, err
	}
	v.Action = SessionPost
	if m.Kind == Batch {
		if !v.Revision.AllowsBatch() {
			return v, refusal(400, CodeInvalidRequest, "%s has no batches: send one message for each POST", v.Revision)
		}
		for i := range x.Batch {
			if x.Batch[i].Method == "initialize" {
				return v, refusal(400, CodeInvalidRequest, "initialize cannot be part of a batch")
			}
		}
	}
	return v, nil
}

// stream judges GET and DELETE, which the session era alone has.
func (x Exchange) stream(version Revision) (Verdict, *Error) {
	v := Verdict{Era: Sessions, Revision: version, Session: x.Header.Get(HeaderSession)}
	if modern(version) || !x.servesSessions() {
		err := refusal(405, CodeInvalidRequest, "%s needs a session, which %s has not", x.HTTPMethod, V20260728)
		err.Allow = http.MethodPost
		return v, err
	}
	v, err := x.inSession(v)
	if err != nil {
		return v, err
	}
	if x.HTTPMethod == http.MethodDelete {
		v.Action = SessionEnd
		return v, nil
	}
	if !Accepts(x.Header, "text/event-stream") {
		return v, refusal(400, CodeInvalidRequest, "GET opens an event stream: send Accept: text/event-stream")
	}
	v.Action, v.LastID = SessionGet, x.Header.Get(HeaderLastEventID)
	return v, nil
}

// inSession checks what every request in a session has.
func (x Exchange) inSession(v Verdict) (Verdict, *Error) {
	if len(x.Header.Values(HeaderSession)) > 1 {
		return v, refusal(400, CodeInvalidRequest, "%s was sent more than once", HeaderSession)
	}
	if v.Revision == "" {
		v.Revision = V20250326 // clients that old send no header
	} else if !v.Revision.HasSessions() || !x.serves(v.Revision) {
		return v, refusal(400, CodeInvalidRequest, "%s %q is not supported; supported are %s", HeaderVersion, clip([]byte(v.Revision)), x.list())
	}
	if v.Session == "" {
		return v, refusal(400, CodeInvalidRequest, "the %s header is missing: begin with initialize, or send %s %s", HeaderSession, HeaderVersion, V20260728)
	}
	return v, nil
}

func (x Exchange) serves(r Revision) bool {
	return r.Known() && (x.Serves == nil || slices.Contains(x.Serves, r))
}

func (x Exchange) servesSessions() bool {
	return x.Serves == nil || slices.ContainsFunc(x.Serves, Revision.HasSessions)
}

func (x Exchange) allow() string {
	if x.servesSessions() {
		return "GET, POST, DELETE"
	}
	return http.MethodPost
}

// supported is what is served, newest first.
func (x Exchange) supported() []Revision {
	serves := x.Serves
	if serves == nil {
		serves = revisions
	}
	serves = slices.Sorted(slices.Values(serves))
	slices.Reverse(serves)
	return serves
}

func (x Exchange) list() string {
	var b strings.Builder
	for i, r := range x.supported() {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(r))
	}
	return b.String()
}

func (x Exchange) unsupported(asked Revision) *Error {
	err := refusal(400, CodeUnsupportedVersion, "Unsupported protocol version")
	err.Data = append(err.Data, `{"supported":[`...)
	for i, r := range x.supported() {
		if i > 0 {
			err.Data = append(err.Data, ',')
		}
		err.Data = AppendString(err.Data, string(r))
	}
	err.Data = AppendString(append(err.Data, `],"requested":`...), string(asked))
	err.Data = append(err.Data, '}')
	return err
}

// Accepts reports whether the Accept header takes mediaType, which is written in lower case; no header takes
// none, since MCP wants it sent.
func Accepts(h http.Header, mediaType string) bool {
	wide, _, _ := strings.Cut(mediaType, "/")
	for _, line := range h.Values("Accept") {
		for part := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(part, ";")
			name = strings.ToLower(strings.TrimSpace(name))
			if name != mediaType && name != wide+"/*" && name != "*/*" {
				continue
			}
			if q, ok := strings.CutPrefix(strings.ReplaceAll(strings.ToLower(params), " ", ""), "q="); ok && strings.Trim(q, "0.") == "" {
				continue // q=0: anything but this
			}
			return true
		}
	}
	return false
}
