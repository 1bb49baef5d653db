package mcp

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
)

// Members calls f with each member of the object that raw is, in order: its decoded name, and its raw value.
// Both alias raw or are only valid during the call. It refuses what Scan refuses in an object that it reads,
// where read names the members that the caller reads (for the check of case); f's error ends the walk and is
// returned as it is. What is wrong is met on the way, so forget what f was shown if the error is not nil.
func Members(raw []byte, lim Limits, read []string, f func(name, value []byte) error) error {
	s := &scanner{b: raw, maxDepth: lim.depth()}
	i := s.ws(0)
	if len(raw) > lim.MaxBytes() {
		return refusal(413, CodeInvalidRequest, "the value has more than %d bytes", lim.MaxBytes())
	}
	if i >= len(raw) || raw[i] != '{' {
		if s.end(s.skip(i)) < 0 {
			return s.syntax
		}
		return refusal(400, CodeInvalidRequest, "the value is no object")
	}
	var o object
	i = o.begin(s, i, "the object", readNames(read...))
	for i >= 0 {
		_, key, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		var v Span
		if v, i = s.raw(at); i < 0 {
			break
		}
		if s.refused != nil {
			return s.refused
		}
		if err := f(key, v.Of(raw)); err != nil {
			return err
		}
	}
	if s.end(i) < 0 {
		return s.syntax
	}
	return nil
}

// Elements calls f with each element of the array that raw is, in order, after the whole of it was checked. f's
// error ends the walk and is returned as it is.
func Elements(raw []byte, lim Limits, f func(value []byte) error) error {
	if len(raw) > lim.MaxBytes() {
		return refusal(413, CodeInvalidRequest, "the value has more than %d bytes", lim.MaxBytes())
	}
	s := scanner{b: raw, maxDepth: lim.depth()}
	spans, err := s.elements(maxBytes)
	if err != nil {
		return err
	}
	for _, v := range spans {
		if err := f(v.Of(raw)); err != nil {
			return err
		}
	}
	return nil
}

// ErrorCode is the code of an error response; ok is false if there is none that is an integer.
func (m *Message) ErrorCode() (code int, ok bool) {
	if !m.Error.Present() {
		return 0, false
	}
	err := Members(m.Error.Of(m.Body), Limits{Bytes: maxBytes}, []string{"code"}, func(name, value []byte) error {
		if string(name) == "code" {
			n, err := strconv.Atoi(string(value))
			code, ok = n, err == nil
		}
		return nil
	})
	return code, ok && err == nil
}

// ErrorLine is the message of an error response for a person to read, cut to a line.
func (m *Message) ErrorLine() string {
	var e struct{ Message string }
	if err := json.Unmarshal(m.Error.Of(m.Body), &e); err != nil || e.Message == "" {
		return "no reason given"
	}
	line, _, _ := strings.Cut(e.Message, "\n")
	return line[:min(len(line), 200)]
}

// Unquote returns the text of raw, one JSON string; ok is false if it is none, or holds half a surrogate pair.
func Unquote(raw []byte) (text []byte, ok bool) {
	raw = bytes.Trim(raw, " \t\r\n")
	s := scanner{b: raw, maxDepth: 1}
	if len(raw) == 0 || raw[0] != '"' {
		return nil, false
	}
	t, end := s.text(0)
	return t.Value, end == len(raw) && s.refused == nil
}
