// Package oldclient gives a target of 2026-07-28 the face of one with sessions, for clients that know no other.
//
// A face is an [upstream.Transport], made for one client by [Bridge.Sessions]: what is sent to it is of the session era, and so is what
// it answers; the target gets messages of its own. See docs/decisions/0004-bridging-the-eras.md.
package oldclient

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
)

// Config of a [Bridge].
type Config struct {
	// Transport reaches a target in its own era, e.g. upstream.Manager.Transport.
	Transport func(*snapshot.Target) upstream.Transport
	// Log gets what no answer tells. If nil, nothing is logged.
	Log *slog.Logger
	// Limits of messages. The zero value means mcp's.
	Limits mcp.Limits
}

// Bridge holds what faces share, and what outlives a request. It is safe for concurrent use.
type Bridge struct {
	cfg Config
	log *slog.Logger

	soft    softStates
	servers *hold.Cache[serverKey, *server]
	params  *hold.Cache[paramsKey, *mcp.ToolParams]
	flights singleflight.Group
}

// once has the requests that need the same share one go of f, which ends with none of them: it has a time of its own. Nor does a request
// wait for it longer than it may.
func (b *Bridge) once(ctx context.Context, key string, f func(context.Context) (any, error)) (any, error) {
	done := b.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), sharedTime, upstream.ErrTimeout)
		defer cancel()
		return f(ctx)
	})
	select {
	case r := <-done:
		return r.Val, r.Err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

const sharedTime = 30 * time.Second

// New returns a bridge that has opened nothing yet.
func New(cfg Config) *Bridge {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Bridge{
		cfg: cfg, log: cfg.Log,
		soft:    softStates{states: map[softKey]*softState{}, past: hold.NewCache[pastKey, struct{}](maxPast), room: hold.NewBudget(maxSoft)},
		servers: hold.NewCache[serverKey, *server](maxServers), params: hold.NewCache[paramsKey, *mcp.ToolParams](maxParams),
	}
}

// What is kept, in bytes: of all tenants, and for each, see docs/limits.md.
const (
	maxServers = 32 << 20 // what targets say of themselves
	maxParams  = 32 << 20 // and of their tools' headers
	maxPast    = 8 << 20  // questions that need no answer any more
	maxSoft    = 64 << 20 // of each tenant: log levels and subscriptions
)
