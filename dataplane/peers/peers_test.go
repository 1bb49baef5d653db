package peers

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A proxy that the control plane names no more is one of the group for a minute, for the control plane may just have been started anew;
// then it is not, whether or not anything is said again, and whoever else is left.
func TestPeerIsTakenOut(t *testing.T) {
	who := identities(t, "proxy-1", "proxy-2")
	state := shakeHands(t, who[1], who[0])
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Identity: who[0]})
		admitted := func() bool {
			_, err := p.admitted(t.Context(), state)
			return err == nil
		}
		if !admitted() {
			t.Error("before the control plane has said anything, a certificate does not count")
		}
		p.Set(map[string]string{"proxy-2": "192.0.2.1:1"})
		if !admitted() {
			t.Error("a proxy of the group is kept out")
		}
		p.Set(nil)
		time.Sleep(missingKept / 2)
		if !admitted() || !slices.Contains(p.Known(), "proxy-2") {
			t.Error("a proxy that is not named is kept out at once")
		}
		time.Sleep(missingKept)
		if admitted() {
			t.Error("a proxy that was taken out is let in")
		}
		if got := p.Known(); len(got) > 0 {
			t.Errorf("known are %v", got)
		}
		if _, err := p.find(t.Context(), "proxy-2"); !errors.Is(err, ErrUnknown) {
			t.Errorf("the way to a proxy that was taken out: %v", err)
		}
		p.Set(map[string]string{"proxy-2": "192.0.2.1:1"})
		if !admitted() {
			t.Error("a proxy that is back is kept out")
		}
	})
}

// What the owner's port refuses is no answer of the owner's: the client is not told to mind its credentials.
func TestOwnerRefusesPeer(t *testing.T) {
	who := identities(t, "proxy-1", "proxy-2")
	nobody := func(uint16) http.Handler { t.Error("served"); return http.NotFoundHandler() }
	owner, peer := New(Config{Identity: who[0], Handler: nobody}), New(Config{Identity: who[1], Handler: nobody})
	owner.Set(nil)
	peer.Set(map[string]string{"proxy-1": serve(t, owner)})
	t.Cleanup(peer.Close)
	w := httptest.NewRecorder()
	err := peer.Forward(w, httptest.NewRequest(http.MethodPost, "/mcp", nil), 3000, "proxy-1", []byte("{}"))
	if gone := (&ErrLost{}); !errors.As(err, &gone) || gone.Sent || w.Body.Len() > 0 {
		t.Errorf("%v, and the client gets %d %s", err, w.Code, w.Body)
	}
}
