package upstream

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"
)

const (
	maxFields  = 256
	maxInterim = 8 // 1xx heads before the real one
)

// h1head is the head of an answer, checked.
type h1head struct {
	status int
	header http.Header // less what concerns framing and the connection
	length int64       // of the body; -1: chunked, -2: up to the end of the connection
	keep   bool        // the connection may be used again after the body
}

const (
	lengthChunked = -1
	lengthToEnd   = -2
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// headEnd finds where the head ends that begins at b, 0 if it has not come yet. It looks at what is new since
// seen bytes had come.
func headEnd(b []byte, seen int) int {
	from := max(0, seen-3)
	if i := bytes.Index(b[from:], []byte("\r\n\r\n")); i >= 0 {
		return from + i + 4
	}
	return 0
}

// parseHead reads a complete head, as strictly as RFC 9112 lets a client be: what two readers could understand in
// two ways is refused.
func parseHead(raw []byte) (h1head, error) {
	text := string(raw) // one copy, which all names and values share
	line, rest, _ := strings.Cut(text, "\r\n")
	h := h1head{length: lengthToEnd}
	status, minor, err := parseStatusLine(line)
	if err != nil {
		return h, err
	}
	h.status, h.keep = status, minor == 1
	fields := strings.Count(rest, "\r\n") - 1 // the empty line
	if fields > maxFields {
		return h, malformed("%d header lines, at most %d are read", fields, maxFields)
	}
	h.header = make(http.Header, fields)
	values := make([]string, fields) // one allocation for all one-value fields
	var f framing
	for len(rest) > 2 {
		line, rest, _ = strings.Cut(rest, "\r\n")
		name, value, err := parseField(line)
		if err != nil {
			return h, err
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if mine, err := f.take(name, value); err != nil {
			return h, err
		} else if mine {
			continue
		}
		if old := h.header[name]; old != nil {
			h.header[name] = append(old, value)
			continue
		}
		values[0] = value
		h.header[name], values = values[:1:1], values[1:]
	}
	return h, f.settle(&h)
}

func parseField(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || !httpguts.ValidHeaderFieldName(name) { // also a folded line, and a blank before the colon
		return "", "", malformed("header line %.40q", line)
	}
	value = strings.Trim(value, " \t")
	if !httpguts.ValidHeaderFieldValue(value) {
		return "", "", malformed("value of header %.40q", name)
	}
	return name, value, nil
}

func parseStatusLine(line string) (status int, minor byte, err error) {
	// HTTP/1.1 200[ reason]
	if len(line) < 12 || line[:7] != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return 0, 0, malformed("status line %.40q", line)
	}
	for _, c := range []byte(line[9:12]) {
		if c < '0' || c > '9' {
			return 0, 0, malformed("status line %.40q", line)
		}
		status = status*10 + int(c-'0')
	}
	if status < 100 || status > 599 || !httpguts.ValidHeaderFieldValue(line[12:]) {
		return 0, 0, malformed("status line %.40q", line)
	}
	return status, line[7] - '0', nil
}

// framing gathers what the header says of the body's end and of the connection.
type framing struct {
	length           int64
	counted, chunked bool
	closes           bool
}

func (f *framing) take(name, value string) (mine bool, err error) {
	switch name {
	case "Content-Length":
		if f.counted {
			return true, malformed("two Content-Length")
		}
		f.counted = true
		f.length, err = parseLength(value)
	case "Transfer-Encoding":
		if f.chunked || !strings.EqualFold(value, "chunked") {
			return true, malformed("Transfer-Encoding %.40q; only chunked, once, is understood", value)
		}
		f.chunked = true
	case "Connection":
		for option := range strings.SplitSeq(value, ",") {
			f.closes = f.closes || strings.EqualFold(strings.Trim(option, " \t"), "close")
		}
	case "Content-Encoding":
		if !strings.EqualFold(value, "identity") {
			return true, malformed("Content-Encoding %.40q, which nobody asked for", value)
		}
	case "Keep-Alive", "Proxy-Connection", "Trailer", "Upgrade":
	default:
		return false, nil
	}
	return true, err
}

func parseLength(v string) (int64, error) {
	if v == "" || len(v) > 18 {
		return 0, malformed("Content-Length %.40q", v)
	}
	var n int64
	for _, c := range []byte(v) {
		if c < '0' || c > '9' {
			return 0, malformed("Content-Length %.40q", v)
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

// settle decides the body's length (RFC 9112 §6.3).
func (f *framing) settle(h *h1head) error {
	h.keep = h.keep && !f.closes
	switch {
	case f.counted && f.chunked:
		return malformed("both Content-Length and Transfer-Encoding")
	case h.status < 200 || h.status == http.StatusNoContent || h.status == http.StatusNotModified:
		if f.chunked || f.counted && f.length != 0 && h.status != http.StatusNotModified {
			h.keep = false // a body that must not be: whether it follows is anyone's guess
		}
		h.length = 0
	case f.chunked:
		if !h.keep && !f.closes {
			return malformed("Transfer-Encoding in an answer of HTTP/1.0")
		}
		h.length = lengthChunked
	case f.counted:
		h.length = f.length
	default:
		h.length, h.keep = lengthToEnd, false
	}
	return nil
}

// chunkSize reads the line that begins a chunk, without its line end. Extensions mean nothing to us.
func chunkSize(line []byte) (int64, error) {
	digits, ext, _ := bytes.Cut(line, []byte(";"))
	if len(ext) > 0 || len(digits) < len(line) {
		digits = bytes.TrimRight(digits, " \t")
	}
	if len(digits) == 0 || len(digits) > 15 {
		return 0, malformed("chunk size %.40q", line)
	}
	var n int64
	for _, c := range digits {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, malformed("chunk size %.40q", line)
		}
		n = n<<4 | int64(c)
	}
	if n > math.MaxInt64/2 || !httpguts.ValidHeaderFieldValue(string(ext)) {
		return 0, malformed("chunk size %.40q", line)
	}
	return n, nil
}
