package mcp

import (
	"bytes"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Edits are changes of one body; the bytes between them stay as they are. The zero value has none and may be
// used again after Reset. Edits must not overlap, and keeps what it is given until Reset.
type Edits struct {
	edits []edit
	buf   []byte // quoted strings
	few   [4]edit
}

type edit struct {
	span Span
	with []byte // nil: buf[from:to], which moves as it grows
	from int
	to   int
}

// Replace puts raw in the place of the value at span.
func (e *Edits) Replace(span Span, raw []byte) { e.add(edit{span: span, with: raw}) }

// String puts the JSON string of text in the place of the value at span.
func (e *Edits) String(span Span, text []byte) {
	from := len(e.buf)
	e.buf = AppendString(e.buf, text)
	e.add(edit{span: span, from: from, to: len(e.buf)})
}

// Insert adds a member, raw, to the object at span in body; the object must not have it. At most one Insert for
// each object, and none beside a Remove in an object that holds nothing else.
func (e *Edits) Insert(body []byte, object Span, name string, raw []byte) {
	e.InsertMembers(body, object, append(append(AppendString(nil, name), ':'), raw...))
}

// InsertMembers is Insert for members as they stand in JSON, between commas: `"a":1,"b":2`.
func (e *Edits) InsertMembers(body []byte, object Span, members []byte) {
	from := len(e.buf)
	e.buf = append(e.buf, members...)
	if at := skipSpace(body, int(object.Start)+1); body[at] != '}' {
		e.buf = append(e.buf, ',')
	}
	e.add(edit{span: Span{object.Start + 1, object.Start + 1}, from: from, to: len(e.buf)})
}

// Remove takes out the member of an object in body whose value stands at span, with its name and one comma. At
// most one Remove for each object.
func (e *Edits) Remove(body []byte, value Span) {
	start := int(value.Start)
	for body[start] != ':' || start == int(value.Start) {
		start-- // white space alone stands between name and value
	}
	for start--; body[start] != '"'; start-- {
	}
	start = openingQuote(body, start)
	end := skipSpace(body, int(value.End))
	if body[end] == ',' {
		end++
	} else {
		end = int(value.End)
		if before := bytes.TrimRight(body[:start], " \t\r\n"); before[len(before)-1] == ',' {
			start = len(before) - 1
		}
	}
	e.add(edit{span: span(start, end), with: []byte{}})
}

// openingQuote finds where the string begins whose closing quote stands at i. Quotes inside it are escaped,
// and no backslash stands before its opening one.
func openingQuote(body []byte, i int) int {
	for i--; ; i-- {
		if body[i] != '"' {
			continue
		}
		if i == 0 || body[i-1] != '\\' {
			return i
		}
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

func (e *Edits) add(x edit) {
	if e.edits == nil {
		e.edits = e.few[:0]
	}
	e.edits = append(e.edits, x)
}

// Len is how many edits there are.
func (e *Edits) Len() int { return len(e.edits) }

// Reset forgets all edits and keeps the memory.
func (e *Edits) Reset() {
	clear(e.edits)
	e.edits, e.buf = e.edits[:0], e.buf[:0]
}

// Apply appends body with all edits done to dst, which must not alias body.
func (e *Edits) Apply(dst, body []byte) []byte {
	if len(e.edits) > 1 {
		slices.SortStableFunc(e.edits, func(a, b edit) int { return int(a.span.Start) - int(b.span.Start) })
	}
	if dst == nil {
		size := len(body)
		for _, x := range e.edits {
			size += len(x.with) + x.to - x.from
		}
		dst = make([]byte, 0, size)
	}
	at := int32(0)
	for _, x := range e.edits {
		dst = append(dst, body[at:x.span.Start]...)
		if x.with != nil {
			dst = append(dst, x.with...)
		} else {
			dst = append(dst, e.buf[x.from:x.to]...)
		}
		at = x.span.End
	}
	return append(dst, body[at:]...)
}

// AppendString appends text as a JSON string. It escapes what JSON demands and nothing else; bytes that are no
// UTF-8 become U+FFFD.
func AppendString[T string | []byte](dst []byte, text T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(text); {
		c := text[i]
		if stringByte[c] == stringPlain {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(string(text[i:min(i+utf8.UTFMax, len(text))]))
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
		}
		dst = append(dst, text[from:i]...)
		switch {
		case c >= utf8.RuneSelf:
			dst = append(dst, "\ufffd"...)
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, `\n`...)
		case c == '\r':
			dst = append(dst, `\r`...)
		case c == '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		from = i
	}
	return append(append(dst, text[from:]...), '"')
}

// AppendRequest appends a request. id and params are raw JSON; params nil: none.
func AppendRequest(dst, id []byte, method string, params []byte) []byte {
	dst = append(dst, `{"jsonrpc":"2.0","id":`...)
	dst = append(dst, id...)
	return appendCall(append(dst, ','), method, params)
}

// AppendNotification appends a notification. params is raw JSON; nil: none.
func AppendNotification(dst []byte, method string, params []byte) []byte {
	return appendCall(append(dst, `{"jsonrpc":"2.0",`...), method, params)
}

func appendCall(dst []byte, method string, params []byte) []byte {
	dst = AppendString(append(dst, `"method":`...), method)
	if params != nil {
		dst = append(append(dst, `,"params":`...), params...)
	}
	return append(dst, '}')
}

// AppendResult appends a response. id and result are raw JSON; result nil: {}.
func AppendResult(dst, id, result []byte) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	dst = append(dst, `,"result":`...)
	if result == nil {
		result = []byte("{}")
	}
	return append(append(dst, result...), '}')
}

// AppendError appends an error response. id and data are raw JSON; id nil: the response has none, as the
// revisions since 2025-11-25 want it where the request's is not known; data nil: none.
func AppendError(dst, id []byte, code int, message string, data []byte) []byte {
	dst = append(dst, `{"jsonrpc":"2.0",`...)
	if id != nil {
		dst = append(append(append(dst, `"id":`...), id...), ',')
	}
	dst = strconv.AppendInt(append(dst, `"error":{"code":`...), int64(code), 10)
	dst = AppendString(append(dst, `,"message":`...), message)
	if data != nil {
		dst = append(append(dst, `,"data":`...), data...)
	}
	return append(dst, "}}"...)
}
