package mcp

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"unicode/utf8"
)

// Headers of MCP, in canonical form.
const (
	HeaderVersion     = "Mcp-Protocol-Version"
	HeaderSession     = "Mcp-Session-Id"
	HeaderMethod      = "Mcp-Method"
	HeaderName        = "Mcp-Name"
	HeaderParam       = "Mcp-Param-" // prefix
	HeaderLastEventID = "Last-Event-Id"
)

const (
	sentinelStart = "=?base64?"
	sentinelEnd   = "?="
)

// EncodeHeader is value as Mcp-Name and Mcp-Param-* carry it: as it is where that is safe, else in the Base64
// form =?base64?…?= of 2026-07-28.
func EncodeHeader(value string) string {
	if !needsBase64(value) {
		return value
	}
	return sentinelStart + base64.StdEncoding.EncodeToString([]byte(value)) + sentinelEnd
}

// HeaderCarries reports whether a method arrives in Mcp-Method as it is: that header has no encoding.
func HeaderCarries(method string) bool { return !needsBase64(method) }

func needsBase64(value string) bool {
	if value == "" {
		return false
	}
	if strings.Trim(value, " \t") != value {
		return true
	}
	for i := range len(value) {
		if value[i] < 0x20 || value[i] > 0x7e {
			return true
		}
	}
	return strings.HasPrefix(value, sentinelStart) && strings.HasSuffix(value, sentinelEnd)
}

// DecodeHeader undoes [EncodeHeader]. Raw UTF-8 is taken as it is, since there are clients that do not encode.
// ok is false for bad Base64, control characters, and bytes that are no UTF-8.
func DecodeHeader(value string) (decoded string, ok bool) {
	value = strings.Trim(value, " \t")
	for i := range len(value) {
		if c := value[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return "", false
		}
	}
	if inner, found := strings.CutPrefix(value, sentinelStart); found {
		if inner, found = strings.CutSuffix(inner, sentinelEnd); found {
			b, err := base64.StdEncoding.Strict().DecodeString(inner)
			return string(b), err == nil && utf8.Valid(b)
		}
	}
	return value, utf8.ValidString(value)
}

// CheckHeaders is the agreement of Mcp-Method and Mcp-Name with the body, which 2026-07-28 demands of requests:
// nil, or an [*Error] with 400 and -32020. [Classify] does it too.
func CheckHeaders(h http.Header, m *Message) error {
	err := checkMethodHeader(h, m)
	if err == nil {
		err = checkNameHeader(h, m)
	}
	if err == nil {
		return nil
	}
	err.ID = idOf(m)
	return err
}

func checkMethodHeader(h http.Header, m *Message) *Error {
	switch values := h.Values(HeaderMethod); {
	case len(values) == 0 || values[0] == "":
		return refusal(400, CodeHeaderMismatch, "the %s header is missing", HeaderMethod)
	case len(values) > 1:
		return refusal(400, CodeHeaderMismatch, "%s was sent %d times", HeaderMethod, len(values))
	case strings.Trim(values[0], " \t") != m.Method:
		return refusal(400, CodeHeaderMismatch, "%s is %q, but the body says %q", HeaderMethod, clip([]byte(values[0])), clip([]byte(m.Method)))
	}
	return nil
}

// checkNameHeader wants Mcp-Name where the revision demands it; on other methods that have a target (tasks, by
// their extension) it has to agree if it was sent.
func checkNameHeader(h http.Header, m *Message) *Error {
	values := h.Values(HeaderName)
	if len(values) > 1 {
		return refusal(400, CodeHeaderMismatch, "%s was sent %d times", HeaderName, len(values))
	}
	required := m.Method == "tools/call" || m.Method == "prompts/get" || m.Method == "resources/read"
	if len(values) == 0 && required {
		return refusal(400, CodeHeaderMismatch, "the %s header is missing, which %s needs", HeaderName, m.Method)
	}
	if len(values) == 0 {
		return nil
	}
	routing := m.Info().Routing
	if routing != ByName && routing != ByURI && routing != ByTask {
		return nil // nothing in the body to agree with
	}
	target, err := m.Target()
	if refused := (*Error)(nil); errors.As(err, &refused) {
		return refused
	}
	switch name, ok := DecodeHeader(values[0]); {
	case !ok:
		return refusal(400, CodeHeaderMismatch, "%s holds invalid characters or bad Base64", HeaderName)
	case name != string(target.Value):
		return refusal(400, CodeHeaderMismatch, "%s is %q, but the body says %q", HeaderName, clip([]byte(name)), clip(target.Value))
	}
	return nil
}

// SetHeaders sets what a request of revision r carries beside its body: MCP-Protocol-Version where r sends it,
// and in the stateless era Mcp-Method and Mcp-Name. name is the target's own name, uri or task id; "": none.
func SetHeaders(h http.Header, r Revision, method, name string) {
	h.Del(HeaderVersion)
	h.Del(HeaderMethod)
	h.Del(HeaderName)
	if r.SendsVersionHeader() {
		h[HeaderVersion] = []string{string(r)}
	}
	if r.Era() != Stateless {
		return
	}
	h[HeaderMethod] = []string{method}
	if name != "" {
		h[HeaderName] = []string{EncodeHeader(name)}
	}
}

// SpellName writes the Mcp-Name of h, a request to a target, as the client's own headers do: in their bytes where they say the same,
// and raw where they are raw UTF-8. There are clients that do not encode, and servers that do not decode (go-sdk v1.8.0): who stands
// between them must not part them. What cannot be said raw stays as it is.
func SpellName(h, client http.Header) {
	ours, theirs := h[HeaderName], client[HeaderName]
	if len(ours) != 1 || len(theirs) != 1 {
		return
	}
	name, _ := DecodeHeader(ours[0])
	spelled := strings.Trim(theirs[0], " \t")
	said, ok := DecodeHeader(spelled)
	switch {
	case !ok:
	case said == name:
		h[HeaderName] = []string{spelled}
	case said == spelled && !needsBase64(strings.Map(asciiOf, name)):
		h[HeaderName] = []string{name}
	}
}

// asciiOf is a letter in place of what is beyond ASCII.
func asciiOf(r rune) rune {
	if r > 0x7f {
		return 'x'
	}
	return r
}
