package mtls

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestKeepDoesNotStorm: a certificate that seems to have little life left, be it for a short TTL or a wrong clock, is not
// traded in a loop.
func TestKeepDoesNotStorm(t *testing.T) {
	for _, ttl := range []time.Duration{30 * time.Second, -2 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			ca := newCA(t)
			id := ID{Group: "g", Proxy: "p"}
			calls := 0
			issue := func(ctx context.Context, csr []byte) (Certificates, error) {
				calls++
				return issuer(ca, id, ttl)(ctx, csr)
			}
			proxy := newIdentity(t, ca, id, ttl)
			ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
			defer stop()
			proxy.Keep(ctx, issue, func(err error) { t.Error(err) })
			if calls > 61 {
				t.Errorf("ttl %v: %d renewals in 10 min", ttl, calls)
			}
			if ttl > 0 && calls < 50 {
				t.Errorf("ttl %v: %d renewals in 10 min, want about 57", ttl, calls)
			}
		})
	}
}
