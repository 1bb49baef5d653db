package xds

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A fleet is a Server behind real gRPC, in memory. Proxies name themselves, as certificates would.
type fleet struct {
	t       *testing.T
	server  *Server
	listen  *bufconn.Listener
	refuse  map[string]error // what Identify says of a proxy
	expires map[string]time.Time
}

// run gives test a fleet in a bubble of its own. A goroutine that outlives it fails the test.
func run(t *testing.T, test func(*fleet)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, listen: bufconn.Listen(1 << 20), refuse: map[string]error{}, expires: map[string]time.Time{}}
		f.server = New(Config{Identify: func(ctx context.Context) (Peer, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			id, group, _ := strings.Cut(md.Get("proxy")[0], "@")
			return Peer{ID: id, Group: group, Expires: f.expires[id]}, f.refuse[id]
		}})
		g := grpc.NewServer(ServerOptions()...)
		f.server.Register(g)
		go g.Serve(f.listen)
		defer g.Stop()
		test(f)
	})
}

// A client is a proxy that a test moves by hand.
type client struct {
	f      *fleet
	id     string
	conn   *grpc.ClientConn
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel context.CancelFunc
	frames chan *discovery.DeltaDiscoveryResponse
	err    error // once frames is closed

	held   [2]map[string]string // name → version, as the frames read so far leave it
	bodies map[string]string
	nonces map[string]bool
}

// connect opens a stream for a proxy `id@group` and subscribes to everything, unless types says what.
func (f *fleet) connect(proxy string, types ...string) *client {
	f.t.Helper()
	c := f.dial(proxy)
	c.read()
	if types == nil {
		types = []string{SecretType, ConfigType}
	}
	for _, typeURL := range types {
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}})
	}
	return c
}

func (f *fleet) dial(proxy string) *client {
	f.t.Helper()
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return f.listen.DialContext(ctx) }))
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(f.t.Context(), "proxy", proxy))
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	c := &client{f: f, id: proxy, conn: conn, stream: stream, cancel: cancel, frames: make(chan *discovery.DeltaDiscoveryResponse, 10_000),
		held: [2]map[string]string{{}, {}}, bodies: map[string]string{}, nonces: map[string]bool{}}
	f.t.Cleanup(c.close)
	return c
}

func (c *client) close() {
	c.cancel()
	c.conn.Close()
}

func (c *client) read() {
	go func() {
		defer close(c.frames)
		for {
			r, err := c.stream.Recv()
			if err != nil {
				c.err = err
				return
			}
			c.frames <- r
		}
	}()
}

func (c *client) send(r *discovery.DeltaDiscoveryRequest) {
	c.f.t.Helper()
	if err := c.stream.Send(r); err != nil && err != io.EOF { // EOF: the stream has ended, which reading tells
		c.f.t.Fatalf("%s: send: %v", c.id, err)
	}
}

// next is the next frame, or nil if none comes by itself.
func (c *client) next() *discovery.DeltaDiscoveryResponse {
	c.f.t.Helper()
	synctest.Wait()
	select {
	case r, ok := <-c.frames:
		if !ok {
			c.f.t.Fatalf("%s: stream ended: %v", c.id, c.err)
		}
		c.take(r)
		return r
	default:
		return nil
	}
}

// take applies a frame, and holds it to what every frame owes.
func (c *client) take(r *discovery.DeltaDiscoveryResponse) {
	c.f.t.Helper()
	if c.nonces[r.Nonce] {
		c.f.t.Errorf("%s: nonce %q came twice", c.id, r.Nonce)
	}
	c.nonces[r.Nonce] = true
	set := slices.Index(typeURLs[:], r.TypeUrl)
	for _, res := range r.Resources {
		if res.Resource.TypeUrl != r.TypeUrl {
			c.f.t.Errorf("%s: %s is of type %s in a response of type %s", c.id, res.Name, res.Resource.TypeUrl, r.TypeUrl)
		}
		c.held[set][res.Name] = res.Version
		c.bodies[res.Name] = string(res.Resource.Value)
	}
	for _, name := range r.RemovedResources {
		delete(c.held[set], name)
		delete(c.bodies, name)
	}
	if len(r.Resources) > 1 {
		size := 0
		for _, res := range r.Resources {
			size += len(res.Name) + len(res.Version) + len(res.Resource.Value)
		}
		if size > maxFrame {
			c.f.t.Errorf("%s: a frame of %d bytes", c.id, size)
		}
	}
}

func (c *client) ack(r *discovery.DeltaDiscoveryResponse) {
	c.f.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
}

func (c *client) nack(r *discovery.DeltaDiscoveryResponse, refusals ...*xdsv1.Refusal) {
	c.f.t.Helper()
	st := &rpcstatus.Status{Code: 3, Message: "does not build"}
	for _, refusal := range refusals {
		detail, err := anypb.New(refusal)
		if err != nil {
			c.f.t.Fatal(err)
		}
		st.Details = append(st.Details, detail)
	}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: st})
}

// settle reads and ACKs until nothing more comes, and returns what came, each frame in one line.
func (c *client) settle() []string {
	c.f.t.Helper()
	var got []string
	for {
		r := c.next()
		if r == nil {
			return got
		}
		got = append(got, line(r))
		c.ack(r)
	}
}

// line shows a frame as `type: name=body … -removed …`, sorted.
func line(r *discovery.DeltaDiscoveryResponse) string {
	var parts []string
	for _, res := range r.Resources {
		body := string(res.Resource.Value)
		if strings.Contains(res.Name, "/commit/") {
			body = r.SystemVersionInfo
		}
		parts = append(parts, res.Name+"="+body)
	}
	for _, name := range r.RemovedResources {
		parts = append(parts, "-"+name)
	}
	slices.Sort(parts)
	return r.TypeUrl[strings.LastIndexByte(r.TypeUrl, '.')+1:] + ": " + strings.Join(parts, " ")
}

// ended waits for the end of the stream and returns its reason.
func (c *client) ended() error {
	c.f.t.Helper()
	synctest.Wait()
	for {
		select {
		case r, ok := <-c.frames:
			if !ok {
				return status.Convert(c.err).Err()
			}
			c.take(r)
		default:
			c.f.t.Fatalf("%s: the stream goes on", c.id)
		}
	}
}

// A source publishes revisions of one tenant and remembers what they add up to.
type source struct {
	f      *fleet
	tenant string
	number int64
	all    [2]map[string]Resource
}

func (f *fleet) tenant(name string) *source {
	return &source{f: f, tenant: name, all: [2]map[string]Resource{{}, {}}}
}

// publish makes a revision of edits: `name=body` or `-name`; a name that begins with `secret/` is a Secret.
func (s *source) publish(edits ...string) *source {
	s.number++
	r := Revision{Number: s.number}
	for _, edit := range edits {
		name, body, _ := strings.Cut(edit, "=")
		set, changed, removed := configs, &r.Config, &r.RemovedConfig
		if strings.HasPrefix(strings.TrimPrefix(name, "-"), "secret/") {
			set, changed, removed = secrets, &r.Secret, &r.RemovedSecret
		}
		if name, gone := strings.CutPrefix(name, "-"); gone {
			name = s.tenant + "/" + name
			*removed = append(*removed, name)
			delete(s.all[set], name)
			continue
		}
		res := Resource{Name: s.tenant + "/" + name, Version: "v-" + body[:min(len(body), 20)], Body: []byte(body)}
		*changed = append(*changed, res)
		s.all[set][res.Name] = res
	}
	s.f.server.Publish(s.tenant, r)
	return s
}

// want is what a client that is in sync holds of the tenant.
func (s *source) want(set int) map[string]string {
	out := map[string]string{}
	for name, r := range s.all[set] {
		out[name] = r.Version
	}
	return out
}

// holds fails the test unless the client holds exactly these tenants, Commits apart.
func (c *client) holds(sources ...*source) {
	c.f.t.Helper()
	for set := range typeURLs {
		want := map[string]string{}
		for _, s := range sources {
			maps.Copy(want, s.want(set))
		}
		got := maps.Clone(c.held[set])
		maps.DeleteFunc(got, func(name, _ string) bool { return strings.Contains(name, "/commit/") })
		if !maps.Equal(want, got) {
			c.f.t.Errorf("%s holds %d resources of %s, want %d: got %.600v\nwant %.600v", c.id, len(got), typeURLs[set], len(want), got, want)
		}
	}
}

// sum shows Progress in one line.
func (f *fleet) sum(tenant string, revision int64) string {
	synctest.Wait()
	p := f.server.Progress(tenant, revision)
	var refused []string
	for _, r := range p.Refused {
		var names []string
		for _, reason := range r.Reasons {
			names = append(names, reason.Name+":"+reason.Reason)
		}
		refused = append(refused, r.Proxy+"("+strings.Join(names, ",")+")")
	}
	return fmt.Sprintf("serving %v refused %v lagging %v", p.Serving, refused, p.Lagging)
}
