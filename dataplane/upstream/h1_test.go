package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// What a peer may answer, byte for byte, and what becomes of it.
func TestAnswers(t *testing.T) {
	type want struct {
		Status int
		Body   string
		Err    string // in the error of Do or of Body.Read
		Reused bool   // a second request comes over the same connection
	}
	ok := "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name string
		send []string
		shut bool // the peer closes after it
		want want
	}{
		{"counted", []string{ok + "Content-Length: 5\r\n\r\nhello"}, false, want{200, "hello", "", true}},
		{"counted, in pieces", []string{"HT", "TP/1.1 200 OK\r", "\nContent-Le", "ngth: 5\r\n\r", "\nhe", "llo"}, false, want{200, "hello", "", true}},
		{"no reason", []string{"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"}, false, want{200, "", "", true}},
		{"chunked", []string{ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=\"y\"\r\n world\r\n0\r\n\r\n"}, false, want{200, "hello world", "", true}},
		{"chunked, borders anywhere", strings.Split(ok+"Transfer-Encoding: Chunked\r\n\r\n|5|\r|\nhe|llo|\r|\n0006\r\n world\r\n00\r\n|X-Trail: 1\r\n|\r|\n", "|"), false, want{200, "hello world", "", true}},
		{"to the end", []string{ok + "\r\nhel", "lo"}, true, want{200, "hello", "", false}},
		{"HTTP/1.0", []string{"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"}, false, want{200, "hi", "", false}},
		{"close", []string{ok + "Content-Length: 2\r\nConnection: foo, Close\r\n\r\nhi"}, false, want{200, "hi", "", false}},
		{"202 without a body", []string{"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"}, false, want{202, "", "", true}},
		{"204", []string{"HTTP/1.1 204 No Content\r\n\r\n"}, false, want{204, "", "", true}},
		{"204 that says it has a body", []string{"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n"}, false, want{204, "", "", false}},
		{"interim answers", []string{"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nhi"}, false, want{200, "hi", "", true}},
		{"bytes after the body", []string{ok + "Content-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n"}, false, want{200, "hi", "", false}},

		{"cut in the head", []string{ok + "Content-Le"}, true, want{Err: "unexpected EOF"}},
		{"cut in a counted body", []string{ok + "Content-Length: 5\r\n\r\nhel"}, true, want{200, "hel", "unexpected EOF", false}},
		{"cut in a chunk", []string{ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhel"}, true, want{200, "hel", "unexpected EOF", false}},
		{"cut between chunks", []string{ok + "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n"}, true, want{200, "hel", "unexpected EOF", false}},
		{"nothing", nil, true, want{Err: "unexpected EOF"}},
		{"101", []string{"HTTP/1.1 101 Switching Protocols\r\n\r\n"}, false, want{Err: "status 101"}},
		{"endless interim answers", []string{strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 20)}, false, want{Err: "interim"}},
		{"not HTTP", []string{"SSH-2.0-OpenSSH_9.0\r\n\r\n"}, false, want{Err: "status line"}},
		{"HTTP/2 preface", []string{"HTTP/2.0 200 OK\r\n\r\n"}, false, want{Err: "status line"}},
		{"bare line feeds", []string{"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi"}, true, want{Err: "unexpected EOF"}},
		{"line feed in a line", []string{ok + "A: b\nContent-Length: 2\r\n\r\nhi"}, false, want{Err: "value of header"}},
		{"folded header", []string{ok + "A: b\r\n c\r\nContent-Length: 2\r\n\r\nhi"}, false, want{Err: "header line"}},
		{"blank before the colon", []string{ok + "Content-Length : 2\r\n\r\nhi"}, false, want{Err: "header line"}},
		{"no colon", []string{ok + "Content-Length 2\r\n\r\nhi"}, false, want{Err: "header line"}},
		{"NUL in a value", []string{ok + "A: b\x00c\r\n\r\n"}, false, want{Err: "value of header"}},
		{"length and chunks", []string{ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, false, want{Err: "both Content-Length"}},
		{"two lengths", []string{ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi"}, false, want{Err: "two Content-Length"}},
		{"length list", []string{ok + "Content-Length: 2, 2\r\n\r\nhi"}, false, want{Err: "Content-Length"}},
		{"signed length", []string{ok + "Content-Length: +2\r\n\r\nhi"}, false, want{Err: "Content-Length"}},
		{"empty length", []string{ok + "Content-Length:\r\n\r\nhi"}, false, want{Err: "Content-Length"}},
		{"huge length", []string{ok + "Content-Length: 99999999999999999999\r\n\r\nhi"}, false, want{Err: "Content-Length"}},
		{"gzip, chunked", []string{ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"}, false, want{Err: "Transfer-Encoding"}},
		{"chunked twice", []string{ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, false, want{Err: "Transfer-Encoding"}},
		{"chunked with HTTP/1.0", []string{"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, false, want{Err: "HTTP/1.0"}},
		{"gzip", []string{ok + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi"}, false, want{Err: "Content-Encoding"}},
		{"chunk size of junk", []string{ok + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"}, false, want{200, "", "chunk size", false}},
		{"negative chunk size", []string{ok + "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n"}, false, want{200, "", "chunk size", false}},
		{"chunk size that overflows", []string{ok + "Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n"}, false, want{200, "", "chunk size", false}},
		{"chunk longer than its size", []string{ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n"}, false, want{200, "hell", "malformed", false}},
		{"bare line feed after a chunk size", []string{ok + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"}, false, want{200, "", "malformed", false}},
		{"endless chunk line", []string{ok + "Transfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("x", 3000) + "\r\nhello\r\n0\r\n\r\n"}, false, want{200, "", "malformed", false}},
		{"endless trailer", []string{ok + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("A: 0123456789012345678901234567890123456789\r\n", 300) + "\r\n"}, false, want{200, "", "trailer", false}},
		{"head without end", []string{ok + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 70) + "\r\n"}, false, want{Err: "the head has more than"}},
		{"too many headers", []string{ok + strings.Repeat("A: b\r\n", 300) + "\r\n"}, false, want{Err: "300 header lines"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := mcptest.NewScript(t, func(c *mcptest.Conn) {
				for {
					r, _ := c.Read()
					switch {
					case r == nil:
						return
					case r.URL.Path == "/mcp" && r.Header.Get("Second") != "":
						c.JSON("second")
						continue
					}
					c.Send(tt.send...)
					if tt.shut {
						return
					}
				}
			})
			m := manager(t, nil)
			tr := m.Transport(httpTarget(t, s.URL, nil))
			var got want
			res, err := tr.Do(limited(t), post(`{}`))
			if err == nil {
				var b []byte
				b, err = io.ReadAll(res.Body)
				res.Body.Close()
				got.Status, got.Body = res.Status, string(b)
			}
			if err != nil {
				var e *Error
				if !errors.As(err, &e) || e.Target != "acme/target/tools/one" || e.Tenant != "acme" || !e.Sent {
					t.Errorf("error %#v, want an *Error that names the target and that it was sent", err)
				}
				if tt.want.Err != "" && strings.Contains(err.Error(), tt.want.Err) {
					got.Err = tt.want.Err
				} else {
					got.Err = err.Error()
				}
			}
			second := post(`{}`)
			second.Header.Set("Second", "1")
			res, err = tr.Do(limited(t), second)
			if err != nil {
				t.Fatalf("second request: %v", err)
			}
			if b := text(t, res); b != "second" {
				t.Errorf("second answer %q: the first one's bytes leaked", b)
			}
			got.Reused = s.Conns() == 1
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A kept connection that dies is replaced unseen where that is safe, and only there.
func TestKeptConnectionDies(t *testing.T) {
	type want struct {
		Status int
		Err    error
		Calls  int // that the target saw
	}
	for _, tt := range []struct {
		name  string
		early bool // the target closes before the second request, else on it
		safe  bool
		want  want
	}{
		{"closed while idle", true, false, want{200, nil, 2}},
		{"closed on the request, which may run twice", false, true, want{200, nil, 3}},
		{"closed on the request, which may not", false, false, want{0, ErrStale, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := make(chan int, 10)
			closed := make(chan bool, 1)
			s := mcptest.NewScript(t, func(c *mcptest.Conn) {
				for n := 1; ; n++ {
					if c.N == 1 && n == 2 && tt.early {
						c.Close()
						closed <- true
						return
					}
					r, _ := c.Read()
					if r == nil {
						return
					}
					calls <- n
					if c.N == 1 && n == 2 {
						return
					}
					c.JSON("{}")
				}
			})
			tr := manager(t, nil).Transport(httpTarget(t, s.URL, nil))
			res, err := tr.Do(limited(t), post(`{}`))
			if err != nil {
				t.Fatal(err)
			}
			text(t, res)
			if tt.early {
				<-closed
				time.Sleep(20 * time.Millisecond) // until the end is here
			}
			r := post(`{}`)
			r.Safe = tt.safe
			var got want
			if res, err = tr.Do(limited(t), r); err == nil {
				got.Status = res.Status
				text(t, res)
			} else if errors.Is(err, ErrStale) && !NotSent(err) {
				got.Err = ErrStale
			} else {
				t.Fatal(err)
			}
			got.Calls = len(calls)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// Nobody is told that a request may be sent again which the target may have seen.
func TestNotSent(t *testing.T) {
	s := mcptest.NewScript(t, func(c *mcptest.Conn) { c.Read() })
	m := manager(t, nil)
	_, err := m.Transport(httpTarget(t, s.URL, nil)).Do(limited(t), post(`{}`))
	contains(t, "closed after the request", err, "acme/target/tools/one", "EOF")
	if NotSent(err) {
		t.Error("a request that was read is called not sent")
	}
	_, err = m.Transport(httpTarget(t, "http://127.0.0.1:1/mcp", nil)).Do(limited(t), post(`{}`))
	contains(t, "refused", err, "dial", "refused")
	if !NotSent(err) {
		t.Error("a connection refused is called sent")
	}
	bad := post(`{}`)
	bad.Header["X"] = []string{"a\r\nMcp-Session-Id: forged"}
	_, err = m.Transport(httpTarget(t, s.URL, nil)).Do(limited(t), bad)
	contains(t, "forged header", err, "header X")
	if !NotSent(err) {
		t.Error("a refused header is called sent")
	}
}

func TestCancel(t *testing.T) {
	gone := make(chan bool, 2)
	s := mcptest.NewScript(t, func(c *mcptest.Conn) {
		if r, _ := c.Read(); r.Header.Get("Stream") != "" {
			c.Send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n: x\r\n")
		}
		c.Hang()
		gone <- true
	})
	m := manager(t, nil)
	tr := m.Transport(httpTarget(t, s.URL, nil))
	why := errors.New("the client left")
	for _, stream := range []bool{false, true} {
		ctx, cancel := context.WithCancelCause(limited(t))
		time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
		r := post(`{}`)
		if stream {
			r.Header.Set("Stream", "1")
		}
		res, err := tr.Do(ctx, r)
		if stream {
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.ReadAll(res.Body)
		}
		if !errors.Is(err, why) {
			t.Errorf("stream %v: error %v, want the cause", stream, err)
		}
		<-gone
	}
	if h := m.Health(); len(h) > 0 && h[0].Err != "" {
		t.Errorf("a client that left made the target unhealthy: %+v", h)
	}
}

func TestTimeout(t *testing.T) {
	s := mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			r, _ := c.Read()
			if r == nil {
				return
			}
			if r.Header.Get("Slow") != "" {
				c.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
				time.Sleep(120 * time.Millisecond)
				c.Send("hi")
				continue
			}
			c.Hang()
		}
	})
	tt := httpTarget(t, s.URL, nil)
	tt.Config.Timeout = duration(50 * time.Millisecond)
	m := manager(t, nil)
	tr := m.Transport(tt)
	slow := post(`{}`)
	slow.Header.Set("Slow", "1")
	res, err := tr.Do(limited(t), slow)
	if err != nil {
		t.Fatal(err)
	}
	if got := text(t, res); got != "hi" {
		t.Errorf("body %q: the timeout is for the head alone", got)
	}
	_, err = tr.Do(limited(t), post(`{}`))
	if !errors.Is(err, ErrTimeout) || NotSent(err) {
		t.Errorf("error %v, want ErrTimeout, sent", err)
	}
	if h := m.Health(); len(h) != 1 || !strings.Contains(h[0].Err, "timeout") || h[0].Target != tt.Resource {
		t.Errorf("health %+v", h)
	}
}

// A large request is answered early by some targets, and not read to its end.
func TestLargeRequest(t *testing.T) {
	big := strings.Repeat("x", 8<<20)
	s := mcptest.NewScript(t, func(c *mcptest.Conn) {
		if c.N == 1 {
			c.Send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
			time.Sleep(50 * time.Millisecond)
			return
		}
		_, body := c.Read()
		c.JSON(fmt.Sprint(len(body)))
	})
	tr := manager(t, nil).Transport(httpTarget(t, s.URL, nil))
	res, err := tr.Do(limited(t), post(big))
	if err != nil {
		t.Fatal(err)
	}
	if got := text(t, res); res.Status != 413 || got != "big" {
		t.Errorf("answer %d %q, want the early 413", res.Status, got)
	}
	res, err = tr.Do(limited(t), post(big))
	if err != nil {
		t.Fatal(err)
	}
	if got := text(t, res); got != fmt.Sprint(len(big)) {
		t.Errorf("the target read %s bytes, want %d", got, len(big))
	}
}

func TestConnectionLimits(t *testing.T) {
	release := make(chan bool)
	s := mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			if r, _ := c.Read(); r == nil {
				return
			}
			<-release
			c.JSON("{}")
		}
	})
	m := manager(t, func(c *Config) { c.MaxConns, c.MaxIdle, c.IdleTimeout = 2, 1, 50*time.Millisecond })
	tr := m.Transport(httpTarget(t, s.URL, nil))
	done := make(chan error, 2)
	for range 2 {
		go func() {
			res, err := tr.Do(limited(t), post(`{}`))
			if err == nil {
				text(t, res)
			}
			done <- err
		}()
	}
	for s.Conns() < 2 {
		time.Sleep(time.Millisecond)
	}
	_, err := tr.Do(limited(t), post(`{}`))
	if !errors.Is(err, ErrBusy) || !NotSent(err) {
		t.Errorf("third request: %v, want ErrBusy, not sent", err)
	}
	close(release)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := m.Health()[0].Conns; n != 1 {
		t.Errorf("%d connections kept, want 1", n)
	}
	for range 100 {
		if m.Health()[0].Conns == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the idle connection was never closed")
}

// What a caller keeps of an answer never shows another's bytes.
func TestBodyAfterEnd(t *testing.T) {
	s := mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			r, _ := c.Read()
			if r == nil {
				return
			}
			c.Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\none\r\n", "0\r\n\r\n")
		}
	})
	tr := manager(t, nil).Transport(httpTarget(t, s.URL, nil))
	first, err := tr.Do(limited(t), post(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(first.Body); string(b) != "one" || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	second, err := tr.Do(limited(t), post(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := first.Body.Read(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("a body read again: %d bytes, %v", n, err)
	}
	first.Body.Close()
	if got := text(t, second); got != "one" || s.Conns() != 1 {
		t.Errorf("second answer %q over %d connections: closing the first one's body twice hurt it", got, s.Conns())
	}
	if _, err := second.Body.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read after the end and Close: %v", err)
	}
}

func TestRequestOnTheWire(t *testing.T) {
	seen := make(chan *http.Request, 1)
	s := mcptest.NewScript(t, func(c *mcptest.Conn) {
		r, body := c.Read()
		r.Header.Set("Body", string(body))
		seen <- r
		c.JSON("{}")
	})
	tt := httpTarget(t, s.URL+"?tenant=a%2Fb", nil)
	r := post(`{"a":1}`)
	for _, name := range []string{"Connection", "Transfer-Encoding", "content-length", "Te", "Upgrade", "Host", "Accept-Encoding"} {
		r.Header[name] = []string{"bad"}
	}
	r.Header["Mcp-Session-Id"] = []string{"abc"}
	res, err := manager(t, nil).Transport(tt).Do(limited(t), r)
	if err != nil {
		t.Fatal(err)
	}
	text(t, res)
	got := <-seen
	want := http.Header{"Body": {`{"a":1}`}, "Accept": r.Header["Accept"], "Content-Type": {"application/json"},
		"Mcp-Session-Id": {"abc"}, "Content-Length": {"7"}, "User-Agent": {"sluice"}}
	if diff := cmp.Diff(want, got.Header); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if got.RequestURI != "/mcp?tenant=a%2Fb" || got.Host != s.Addr {
		t.Errorf("asked for %s at %s", got.RequestURI, got.Host)
	}
}

func FuzzParseHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nA:b\r\na: c\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := headEnd(b, 0)
		if n == 0 {
			return
		}
		h, err := parseHead(b[:n])
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("error %v is not ErrProtocol", err)
			}
			return
		}
		if h.status < 100 || h.status > 599 || h.length < lengthToEnd || h.length == lengthToEnd && h.keep {
			t.Errorf("head %+v", h)
		}
		for name, values := range h.header {
			if strings.ContainsAny(name+strings.Join(values, ""), "\r\n\x00") {
				t.Errorf("header %q: %q", name, values)
			}
		}
	})
}

// memory is a connection that has said all it will say.
type memory struct {
	net.Conn
	r *bytes.Reader
}

func (m memory) Read(p []byte) (int, error) { return m.r.Read(p) }
func (m memory) Close() error               { return nil }

// What we accept, net/http reads in the same way: nobody can hide an answer in an answer.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 200 OK\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nab",
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		cfg := Config{}.withDefaults()
		pool := newH1Pool(&cfg, "", nil)
		nc := memory{r: bytes.NewReader(b)}
		x := &exchange{c: &h1conn{pool: pool, nc: nc, tcp: nc, buf: make([]byte, 64)}, ctx: context.Background(), stop: func() bool { return true }}
		if x.readHead() != nil {
			return
		}
		res, err := x.answer()
		if err != nil {
			t.Fatal(err)
		}
		var body []byte
		p := make([]byte, int(size)+1)
		for err == nil {
			var n int
			n, err = res.Body.Read(p)
			body = append(body, p[:n]...)
			if len(body) > len(b) {
				t.Fatalf("read more than there was")
			}
		}
		if err != io.EOF {
			return
		}
		theirs := bufio.NewReader(bytes.NewReader(b))
		for {
			want, err := http.ReadResponse(theirs, &http.Request{Method: "POST"})
			if err != nil {
				t.Fatalf("net/http refuses what we accept: %v", err)
			}
			if want.StatusCode < 200 {
				continue
			}
			all, err := io.ReadAll(want.Body)
			if err != nil || want.StatusCode != res.Status || !bytes.Equal(all, body) {
				t.Errorf("we read %d %q, net/http %d %q %v", res.Status, body, want.StatusCode, all, err)
			}
			return
		}
	})
}

func TestIDKey(t *testing.T) {
	for _, tt := range []struct {
		a, b  string
		same  bool
		plain bool // of a
	}{
		{"1", "1.0", true, true}, {"1", `"1"`, false, true}, {`"a"`, `"\u0061"`, true, true}, {`"\u0061"`, `"a"`, true, false},
		{"9007199254740993", "9007199254740992", false, false}, {"1.5", "1.5", true, false}, {"0", "-0", true, true}, {"1e2", "100", true, false},
	} {
		a, plain := idKey([]byte(tt.a))
		b, _ := idKey([]byte(tt.b))
		if (a == b) != tt.same || plain != tt.plain {
			t.Errorf("%s and %s: keys %q and %q, plain %v", tt.a, tt.b, a, b, plain)
		}
	}
}

func TestStreamLag(t *testing.T) {
	s := newStream(10)
	for _, msg := range []string{"1234567890123", "12345", "1234567"} { // one alone always fits
		s.push([]byte(msg), false)
	}
	_, _, err := s.next(t.Context())
	contains(t, "a reader that lags", err, "lags by more than 10 bytes")

	s = newStream(10)
	s.push([]byte("a"), false)
	s.push([]byte("b"), true)
	s.fail(errors.New("late"))
	for _, want := range []string{"a", "b"} {
		if msg, last, err := s.next(t.Context()); string(msg) != want || last != (want == "b") || err != nil {
			t.Errorf("next: %q %v %v, want %s", msg, last, err, want)
		}
	}
	if _, _, err := s.next(t.Context()); err != io.EOF {
		t.Errorf("after the last message: %v", err)
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff
		why := errors.New("exit status 1")
		longest := time.Duration(0)
		for range 30 {
			b.failed(why)
			wait, err := b.wait()
			if wait > maxBackoff || err != why {
				t.Fatalf("wait %v, %v", wait, err)
			}
			longest = max(longest, wait)
			time.Sleep(wait)
			if wait, _ := b.wait(); wait > 0 {
				t.Fatalf("still %v", wait)
			}
		}
		if longest < time.Second {
			t.Errorf("longest wait %v: it does not grow", longest)
		}
		b.ok()
		b.failed(why)
		if wait, _ := b.wait(); wait > 250*time.Millisecond {
			t.Errorf("after a success: %v", wait)
		}
		b.note(time.Now(), why)
		if b.fails != 1 {
			t.Errorf("one end counted %d times", b.fails)
		}
	})
}
