package xds

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxFrame is the most that one response holds, unless a single resource is larger.
const maxFrame = 512 << 10

// maxRequest is room for the versions of some 200,000 resources, of which a reconnecting proxy sends a list.
const maxRequest = 16 << 20

// window is how much a proxy may send that is not read yet. ACKs are small; the list of versions of a large tenant comes once.
const window = 256 << 10

// ServerOptions are the options that a gRPC server with this service on it must be made with: the codec that sends
// shared frames, small buffers, message limits and keepalive. Other services on it are served as ever.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(protocodec.Name)}),
		// A connected proxy is idle nearly always: large buffers of its own would be most of what it costs.
		grpc.ReadBufferSize(4 << 10),
		// gRPC's own estimate of the window sends a ping for what arrives: for each ACK of a fleet a write and a read more.
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(128),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
}

// A codec passes frames and requests of this package through as bytes, so that a thousand proxies do not encode one
// update a thousand times, and everything else to the ordinary codec.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	out := make(mem.BufferSlice, 0, 2)
	if len(f.body) > 0 {
		out = append(out, mem.SliceBuffer(f.body)) // not pooled: a SliceBuffer is never given back
	}
	return append(out, mem.SliceBuffer(f.trailer())), nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*request)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	return r.parse(data.Materialize())
}

// A frame is one DeltaDiscoveryResponse: a body that many streams share, and the few fields that are a stream's own.
type frame struct {
	body     []byte // fields resources and removed_resources, encoded
	set      int    // configs or secrets
	revision int64
	nonce    string
}

func (f *frame) trailer() []byte {
	b := make([]byte, 0, 128)
	if f.revision > 0 {
		b = appendString(b, 1, strconv.FormatInt(f.revision, 10)) // system_version_info: for people
	}
	b = appendString(b, 4, typeURLs[f.set])
	return appendString(b, 5, f.nonce)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// appendResource appends a resource as an element of DeltaDiscoveryResponse.resources.
func appendResource(b []byte, typeURL string, r *Resource) []byte {
	anySize := 1 + protowire.SizeBytes(len(typeURL)) + 1 + protowire.SizeBytes(len(r.Body))
	size := 1 + protowire.SizeBytes(len(r.Version)) + 1 + protowire.SizeBytes(anySize) + 1 + protowire.SizeBytes(len(r.Name))
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = appendString(b, 1, r.Version)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(anySize))
	b = appendString(b, 1, typeURL)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendBytes(b, r.Body)
	return appendString(b, 3, r.Name)
}

// resourceSize is about what appendResource appends.
func resourceSize(r *Resource) int { return len(r.Name) + len(r.Version) + len(r.Body) + 80 }

func removedSize(name string) int { return len(name) + 8 }

// A chunker encodes resources and removals into bodies of at most maxFrame.
type chunker struct {
	set    int
	bodies [][]byte
}

func (c *chunker) resource(r *Resource) {
	b := c.room(resourceSize(r))
	*b = appendResource(*b, typeURLs[c.set], r)
}

func (c *chunker) removed(name string) {
	b := c.room(removedSize(name))
	*b = appendString(*b, 6, name)
}

// fits tells whether n bytes more fit into one body, the only one.
func (c *chunker) fits(n int) bool { return len(c.bodies) == 0 || len(c.bodies[0])+n <= maxFrame }

func (c *chunker) room(n int) *[]byte {
	if last := len(c.bodies) - 1; last < 0 || len(c.bodies[last]) > 0 && len(c.bodies[last])+n > maxFrame {
		c.bodies = append(c.bodies, nil)
	}
	return &c.bodies[len(c.bodies)-1]
}

// A request is the part of a DeltaDiscoveryRequest that is read; what it holds lies in one buffer of its own. Who is asking
// is told by the certificate alone, so node is skipped.
type request struct {
	typeURL, nonce         string
	subscribe, unsubscribe []string
	versions               []claim // initial_resource_versions
	failure                []byte  // error_detail, encoded; nil: none
}

// A claim is a resource that a client says it has.
type claim struct{ name, version []byte }

func (r *request) parse(b []byte) error {
	*r = request{}
	return fields(b, func(field protowire.Number, v []byte) error {
		switch field {
		case 2:
			r.typeURL = internType(v)
		case 3:
			r.subscribe = append(r.subscribe, string(v))
		case 4:
			r.unsubscribe = append(r.unsubscribe, string(v))
		case 5:
			var c claim
			err := fields(v, func(field protowire.Number, v []byte) error {
				switch field {
				case 1:
					c.name = v
				case 2:
					c.version = v
				}
				return nil
			})
			if err != nil {
				return err
			}
			r.versions = append(r.versions, c)
		case 6:
			r.nonce = string(v)
		case 7:
			r.failure = append(r.failure, v...)
			if r.failure == nil {
				r.failure = []byte{}
			}
		}
		return nil
	})
}

// internType saves an allocation for each of the ACKs of a fleet.
func internType(v []byte) string {
	for _, t := range typeURLs {
		if string(v) == t {
			return t
		}
	}
	return string(v)
}

// fields calls visit for each field of a message that is a string, bytes or a message.
func fields(b []byte, visit func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		field, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed(n)
		}
		b = b[n:]
		if wire != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(field, wire, b); n < 0 {
				return malformed(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return malformed(n)
		}
		if err := visit(field, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

var errMalformed = errors.New("malformed DeltaDiscoveryRequest")

func malformed(n int) error { return fmt.Errorf("%w: %w", errMalformed, protowire.ParseError(n)) }
