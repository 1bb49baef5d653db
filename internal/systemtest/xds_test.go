package systemtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

const (
	configType = "type.googleapis.com/sluice.xds.v1.Config"
	secretType = "type.googleapis.com/sluice.xds.v1.Secret"
)

// adsClient is an xDS client that asks for what it likes.
type adsClient struct {
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	frames chan *discoveryv3.DeltaDiscoveryResponse // closed at the end
}

func dialADS(t *testing.T, address string, config *tls.Config) adsClient {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return adsClient{stream: stream, frames: make(chan *discoveryv3.DeltaDiscoveryResponse, 64)}
}

func (c adsClient) ask(t *testing.T, typ string, names ...string) {
	t.Helper()
	if err := c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "shared-proxy", Cluster: "shared"}, TypeUrl: typ, ResourceNamesSubscribe: names}); err != nil {
		t.Fatal(err)
	}
}

// read ACKs whatever comes, so that more may.
func (c adsClient) read() {
	defer close(c.frames)
	for {
		response, err := c.stream.Recv()
		if err != nil {
			return
		}
		c.frames <- response
		c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()})
	}
}

// until reads frames up to one with a resource, and returns the names of those that came and those that are said not to be.
func (c adsClient) until(t *testing.T, name string) (names, removed []string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case response, ok := <-c.frames:
			if !ok {
				t.Fatalf("the stream ended before %s; it had %v", name, names)
			}
			found := false
			for _, r := range response.GetResources() {
				names = append(names, r.GetName())
				found = found || r.GetName() == name
			}
			removed = append(removed, response.GetRemovedResources()...)
			if found {
				return names, removed
			}
		case <-timeout:
			t.Fatalf("%s does not come; what came is %v", name, names)
		}
	}
}

// An xDS client of one group asks for another group's tenants, by every name it could guess, and claims to be another.
func TestForeignXDSClient(t *testing.T) {
	w := newTenants(t)
	dir := t.TempDir()
	w.must("token", "cert", "--group", "far", "--count", "1", "--out", dir)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "proxy-0.pem"), filepath.Join(dir, "proxy-0.key"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	config := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}

	c := dialADS(t, w.plane.XDS, config)
	secrets := []string{"red/session-keys", "red/secret/red-secret", "default/session-keys", "nobody/session-keys"}
	configs := []string{"red/target/red-backend/red-target", "red/commit/red", "red/*", "red", "../red/commit/red", "blue/tenant/blue", "default/commit/default", "nobody/commit/nobody"}
	c.ask(t, secretType, append(secrets, "*")...)
	c.ask(t, configType, append(configs, "*")...)
	go c.read()
	names, removed := c.until(t, "green/commit/green")
	// Of what it asked for by name it is told that there is no such thing, be there one or not.
	for _, name := range append(secrets, configs...) {
		if strings.Contains(name, "/") && !slices.Contains(removed, name) {
			t.Errorf("that there is no %s is not said; of others it is: %v", name, removed)
		}
	}
	// What red does meanwhile reaches nobody of this group: the next that comes is green's.
	w.red.must("apply", "-f", write(t, "red.yaml", w.config("red", "false")), "--wait")
	w.must("tenant", "create", "violet")
	w.green.must("apply", "-f", write(t, "green.yaml", w.config("green", "false")), "--wait")
	more, gone := c.until(t, "green/commit/green")
	for _, name := range gone {
		if !strings.HasPrefix(name, "green/") {
			t.Errorf("a client of green's group was told that %s is gone", name)
		}
	}
	green := 0
	for _, name := range append(names, more...) {
		if !strings.HasPrefix(name, "green/") {
			t.Errorf("a client of green's group was given %s", name)
		}
		green++
	}
	if green < 8 {
		t.Errorf("it was told of %d names of green: %v", green, names)
	}

	for what, config := range map[string]*tls.Config{
		"no certificate":                {RootCAs: pool},
		"a certificate of another CA's": {RootCAs: pool, Certificates: []tls.Certificate{foreign(t)}},
	} {
		conn, err := grpc.NewClient(w.plane.XDS, grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err == nil {
			_, err = stream.Recv()
		}
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.Unavailable && code != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
		cancel()
		conn.Close()
	}
}

func foreign(t *testing.T) tls.Certificate {
	t.Helper()
	cert, key := newAuthority(t).issue(t, 1, "far-proxy")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
