package upstream

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// A body is the caller's again when Do returns. A target that answers before it takes the body gets what was said to it all the
// same, and never what the caller's memory holds by then, which may be another tenant's.
func TestHTTP2TargetThatAnswersFirst(t *testing.T) {
	overwritten, got := make(chan struct{}), make(chan string, 1)
	srv := httptest.NewUnstartedServer(nil)
	srv.TLS = &tls.Config{NextProtos: []string{"h2"}}
	srv.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": func(_ *http.Server, c *tls.Conn, _ http.Handler) {
		if _, err := c.Read(make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := http2.NewFramer(c, c)
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		var body []byte
		first := true // tells the client of the window before the request that matters
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if !frame.IsAck() {
					_ = f.WriteSettingsAck()
				}
			case *http2.HeadersFrame:
				var head bytes.Buffer
				e := hpack.NewEncoder(&head)
				_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
				_ = e.WriteField(hpack.HeaderField{Name: "content-type", Value: "text/event-stream"})
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.StreamID, BlockFragment: head.Bytes(), EndHeaders: true})
				if !first {
					<-overwritten
				}
				first = false
				_ = f.WriteWindowUpdate(frame.StreamID, 1<<20)
			case *http2.DataFrame:
				body = append(body, frame.Data()...)
				if frame.StreamEnded() {
					got <- string(body)
					body = nil
					_ = f.WriteData(frame.StreamID, true, []byte(": over\n\n"))
				}
			}
		}
	}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	tr := manager(t, nil).Transport(tlsTarget(t, srv.URL+"/mcp", ca, &policyv1.BackendTls{Alpn: []string{"h2"}}))
	res, err := tr.Do(limited(t), post("{}"))
	if err != nil {
		t.Fatal(err)
	}
	_ = text(t, res)
	<-got
	said := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + strings.Repeat("a", 30<<10) + `"}}` // more than one frame
	r := post(said)
	if res, err = tr.Do(limited(t), r); err != nil {
		t.Fatal(err)
	}
	for i := range r.Body {
		r.Body[i] = 'b'
	}
	close(overwritten)
	_ = text(t, res)
	if b := <-got; b != said {
		t.Errorf("the target was told %.20q…%.20q", b, b[len(b)-20:])
	}
}
