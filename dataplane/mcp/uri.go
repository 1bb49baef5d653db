package mcp

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
)

// A URIWriter passes a JSON-RPC message on and rewrites the URIs in it that MCP defines, at these places alone:
//
//	result.content[].uri           result.content[].resource.uri
//	result.messages[].content.uri  result.messages[].content.resource.uri
//	result.contents[].uri          result.tools[]._meta.ui.resourceUri
//	                               result._meta.ui.resourceUri
//
// and so in each element of a batch. If it is asked to, also tasks' ids where [Rewrites] says; what a task resulted in
// (result.result, and params.result of what tells of a task) is then a result as any other. And the id of a response.
//
// It works on the bytes as they come, whatever their borders, and holds back no more than one URI. All other bytes
// pass as they are; a URI that the function leaves alone keeps its form. It follows the structure that it needs and
// validates nothing else: text whose structure cannot be followed is an error, other text that is no JSON passes for
// the receiver to refuse.
type URIWriter struct {
	w       io.Writer
	rewrite func(uri []byte) []byte // nil: URIs stay
	task    func(id []byte) []byte  // nil: tasks' ids stay
	private bool
	id      []byte // raw; nil: ids stay

	state state
	after state    // where the end of a string that passes leads
	next  node     // what the coming value is, by its name or its place
	path  []frame  // open containers that are followed
	deep  [8]frame // … no more than the automaton is deep
	depth int      // open containers below them

	held   []byte // the name or URI that is being read, with its quotes
	escape bool   // held ends in a backslash that escapes what comes
	out    []byte // what the call is to pass on
	err    error
}

type frame struct {
	node   node
	object bool
}

// A state says what the next byte belongs to.
type state uint8

const (
	atValue  state = iota // before a value, or the end of an empty array
	atName                // before a name, or the end of an empty object
	atColon               // after a name
	atComma               // after a value in a container that is followed
	atEnd                 // after the message
	inName                // in a name that may lead on: held
	inURI                 // in a URI, an id or a cacheScope: held
	inString              // in another string, or a name that leads nowhere
	inEscape              // … after its backslash
	inScalar              // in a number or literal
	inDead                // in a container that is not followed
	inNumber              // in one that is replaced
)

// A node is a place in a message where URIs are found, or to where they are.
type node uint8

const (
	dead node = iota
	root
	single // a message, also in a batch
	result
	content  // one block or several
	block    // has a uri (a link) or a resource
	contents // of resources/read
	resource // has a uri
	messages // of a prompt
	message
	tools
	tool
	meta  // _meta
	ui    // _meta.ui
	scope // cacheScope, if it is a string
	uri   // a URI, if it is a string
	ident // a message's id, if it is a string or number

	// From here on: followed only if tasks' ids are looked for.
	params
	outcome // what a task resulted in
	failure // an error
	data    // an error's
	tasks
	task
	related // _meta's io.modelcontextprotocol/related-task
	taskID  // a task's id, if it is a string
)

// members and elements are the ways on from an object and from an array.
var members = [...]map[string]node{
	root:   {"id": ident, "result": result, "params": params, "error": failure},
	single: {"id": ident, "result": result, "params": params, "error": failure},
	result: {"content": content, "contents": contents, "messages": messages, "tools": tools, "_meta": meta, "cacheScope": scope,
		"taskId": taskID, "task": task, "tasks": tasks, "result": outcome, "error": failure},
	params:   {"_meta": meta, "taskId": taskID, "result": outcome, "error": failure},
	outcome:  {"content": content, "contents": contents, "messages": messages, "_meta": meta},
	failure:  {"data": data},
	data:     {"_meta": meta, "taskId": taskID},
	task:     {"_meta": meta, "taskId": taskID},
	related:  {"taskId": taskID},
	content:  {"uri": uri, "resource": resource},
	block:    {"uri": uri, "resource": resource},
	resource: {"uri": uri},
	message:  {"content": content},
	tool:     {"_meta": meta},
	meta:     {"ui": ui, "ui/resourceUri": uri, MetaRelatedTask: related},
	ui:       {"resourceUri": uri},
	taskID:   nil,
}

var elements = [taskID + 1]node{root: single, content: block, contents: resource, messages: message, tools: tool, tasks: task}

const (
	longestName = 6 * len(`"`+MetaRelatedTask+`"`) // were every character escaped
	longestURI  = 64 << 10
)

// NewURIWriter writes to w what is written to it, with each URI replaced by what rewrite returns for it; nil
// leaves it alone. rewrite must neither keep nor change its argument.
func NewURIWriter(w io.Writer, rewrite func(uri []byte) []byte) *URIWriter {
	return &URIWriter{w: w, rewrite: rewrite, next: root}
}

// MakePrivate makes result.cacheScope private, where there is one.
func (u *URIWriter) MakePrivate() { u.private = true }

// MakePrivate is a result whose cacheScope is private, if it has one. A result that cannot be followed stays as it is.
func MakePrivate(result []byte) []byte {
	before, after := `{"result":`, `}`
	body := append(append([]byte(before), result...), after...)
	out, err := RewriteResult(nil, body, nil, true)
	if err != nil {
		return result
	}
	return out[len(before) : len(out)-len(after)]
}

// RewriteResult is [RewriteURIs] that makes result.cacheScope private, if asked to. rewrite may be nil.
func RewriteResult(dst, body []byte, rewrite func(uri []byte) []byte, private bool) ([]byte, error) {
	return Rewrite(dst, body, Rewrites{URI: rewrite, Private: private})
}

// RewriteURIs appends body to dst with its URIs rewritten as a [URIWriter] does.
func RewriteURIs(dst, body []byte, rewrite func(uri []byte) []byte) ([]byte, error) {
	return RewriteResult(dst, body, rewrite, false)
}

func (u *URIWriter) whole(dst, body []byte) ([]byte, error) {
	err := u.feed(body)
	if err == nil {
		err = u.finish()
	}
	if err != nil {
		return dst, err
	}
	return u.out, nil
}

// Write implements io.Writer. What can be told of p is passed on before it returns. After an error all calls
// return it.
func (u *URIWriter) Write(p []byte) (int, error) { return u.write(p, u.feed) }

func (u *URIWriter) write(p []byte, feed func([]byte) error) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	u.out = u.out[:0]
	if u.err = feed(p); u.err == nil && len(u.out) > 0 {
		_, u.err = u.w.Write(u.out)
	}
	if cap(u.out) > 256<<10 {
		u.out = nil
	}
	if u.err != nil {
		return 0, u.err
	}
	return len(p), nil
}

// Close says that the message is over. It does not close the writer below. It fails if the message broke off.
func (u *URIWriter) Close() error {
	if u.err == nil {
		u.err = u.finish()
	}
	return u.err
}

func (u *URIWriter) finish() error {
	if u.state == atEnd || (u.state == inScalar || u.state == inNumber) && len(u.path) == 0 {
		return nil
	}
	return fmt.Errorf("mcp: the message breaks off: %w", io.ErrUnexpectedEOF)
}

// feed takes p and appends what passes to u.out.
func (u *URIWriter) feed(p []byte) error {
	for len(p) > 0 {
		var n int
		var err error
		switch u.state {
		case inString:
			n = u.passString(p)
		case inDead:
			n = u.passDead(p)
		case inName, inURI:
			n, err = u.hold(p)
		default:
			n, err = u.step(p[0])
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// textEnd is the index of the first quote or backslash, len(p) if there is none.
func textEnd(p []byte) int {
	i := 0
	for ; i+8 <= len(p); i += 8 {
		w := binary.LittleEndian.Uint64(p[i:])
		q, e := w^'"'*each01, w^'\\'*each01
		if hit := ((q-each01)&^q | (e-each01)&^e) & each80; hit != 0 {
			return i + bits.TrailingZeros64(hit)>>3
		}
	}
	for i < len(p) && p[i] != '"' && p[i] != '\\' {
		i++
	}
	return i
}

// passString passes a string that holds nothing for us.
func (u *URIWriter) passString(p []byte) int {
	n := textEnd(p)
	if n < len(p) {
		if p[n] == '\\' {
			u.state = inEscape
		} else {
			u.state = u.after
		}
		n++
	}
	u.out = append(u.out, p[:n]...)
	return n
}

// passDead passes a container that holds nothing for us, up to a string in it or to its end.
func (u *URIWriter) passDead(p []byte) int {
	n := 0
	for u.state == inDead && n < len(p) {
		switch p[n] {
		case '"':
			u.state, u.after = inString, inDead
		case '{', '[':
			u.depth++
		case '}', ']':
			if u.depth--; u.depth == 0 {
				u.state = u.valueEnd()
			}
		}
		n++
	}
	u.out = append(u.out, p[:n]...)
	return n
}

// hold gathers a name or a URI, and decides on it at its end.
func (u *URIWriter) hold(p []byte) (int, error) {
	if u.escape {
		u.escape = false
		u.held = append(u.held, p[0])
		return 1, nil
	}
	n := textEnd(p)
	end := n < len(p) && p[n] == '"'
	if n < len(p) {
		u.escape = p[n] == '\\'
		n++
	}
	u.held = append(u.held, p[:n]...)
	switch {
	case u.state == inURI && len(u.held) > longestURI:
		return n, fmt.Errorf("mcp: a URI or an id has more than %d bytes", longestURI)
	case end && u.state == inName:
		u.named()
	case end:
		return n, u.replace()
	case u.state == inName && len(u.held) > longestName:
		u.next, u.state, u.after = dead, inString, atColon
		if u.escape {
			u.state, u.escape = inEscape, false
		}
		u.out = append(u.out, u.held...)
	}
	return n, nil
}

// named is at the end of a name, which says where the value leads.
func (u *URIWriter) named() {
	u.out = append(u.out, u.held...)
	u.next, u.state = dead, atColon
	if name, ok := Unquote(u.held); ok {
		u.next = members[u.path[len(u.path)-1].node][string(name)]
		if u.next >= params && u.task == nil {
			u.next = dead
		}
	}
}

// replace is at the end of a URI.
func (u *URIWriter) replace() error {
	if u.next == ident {
		u.out = append(u.out, u.id...)
		u.state = u.valueEnd()
		return nil
	}
	text, ok := Unquote(u.held)
	if !ok {
		return fmt.Errorf("mcp: a URI or a task's id is no valid string: %s", clip(u.held))
	}
	var to []byte
	switch {
	case u.next == scope:
		to = []byte("private")
	case u.next == taskID:
		to = u.task(text)
	case u.rewrite != nil:
		to = u.rewrite(text)
	}
	if to != nil {
		u.out = AppendString(u.out, to)
	} else {
		u.out = append(u.out, u.held...)
	}
	u.state = u.valueEnd()
	return nil
}

// valueEnd is the state after a value.
func (u *URIWriter) valueEnd() state {
	if len(u.path) == 0 {
		return atEnd
	}
	return atComma
}

// step takes one byte outside strings and containers that pass whole.
func (u *URIWriter) step(c byte) (int, error) {
	space := c == ' ' || c == '\n' || c == '\r' || c == '\t'
	if (u.state == inScalar || u.state == inNumber) && (space || c == ',' || c == '}' || c == ']') {
		u.state = u.valueEnd()
	}
	ok := true
	switch u.state {
	case inEscape:
		u.state = inString
	case inNumber:
		if ok = c != '"' && c != '{' && c != '['; ok {
			return 1, nil
		}
	case inScalar:
		ok = c != '"' && c != '{' && c != '['
	case atColon:
		if ok = c == ':' || space; c == ':' {
			u.state = atValue
		}
	case atName:
		switch {
		case c == '"':
			u.state, u.held = inName, append(u.held[:0], c)
			return 1, nil
		case c == '}':
			u.pop()
		default:
			ok = space
		}
	case atComma:
		ok = u.comma(c) || space
	case atEnd:
		ok = space
	case atValue:
		if c == '"' && (u.next == uri && u.rewrite != nil || u.next == scope && u.private || u.next == taskID || u.next == ident && u.id != nil) {
			u.state, u.held = inURI, append(u.held[:0], c)
			return 1, nil
		}
		if u.next == ident && u.id != nil && (c == '-' || '0' <= c && c <= '9') {
			u.state, u.out = inNumber, append(u.out, u.id...)
			return 1, nil
		}
		ok = space || u.value(c)
	}
	if !ok {
		return 0, fmt.Errorf("mcp: the message is no valid JSON: %q is out of place", c)
	}
	u.out = append(u.out, c)
	return 1, nil
}

// value begins a value with c.
func (u *URIWriter) value(c byte) bool {
	switch c {
	case '{':
		u.push(members[u.next] != nil, true, atName)
	case '[':
		u.push(elements[u.next] != dead, false, atValue)
	case ']':
		if n := len(u.path); n == 0 || u.path[n-1].object {
			return false
		}
		u.pop()
	case '"':
		u.state, u.after = inString, u.valueEnd()
	case ':', ',', '}', '\\':
		return false
	default:
		u.state = inScalar
	}
	return true
}

func (u *URIWriter) push(follow, object bool, then state) {
	if !follow {
		u.state, u.depth = inDead, 1
		return
	}
	if u.path == nil {
		u.path = u.deep[:0]
	}
	u.path = append(u.path, frame{u.next, object})
	u.state = then
	if !object {
		u.next = elements[u.next]
	}
}

func (u *URIWriter) pop() {
	u.path = u.path[:len(u.path)-1]
	u.state = u.valueEnd()
}

// comma takes what may follow a value.
func (u *URIWriter) comma(c byte) bool {
	top := u.path[len(u.path)-1]
	switch {
	case c == ',' && top.object:
		u.state = atName
	case c == ',':
		u.state, u.next = atValue, elements[top.node]
	case c == '}' && top.object, c == ']' && !top.object:
		u.pop()
	default:
		return false
	}
	return true
}
