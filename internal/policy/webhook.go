package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/sluicegate/sluice/internal/guard"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// webhook asks a service of the operator's. docs/policies/ai.md has the contract.
type webhook struct {
	service
	headers []header
}

func compileWebhook(w *policyv1.WebhookGuard, r Resolver, field string, errs *problems) judge {
	if w.GetUrl() == "" {
		errs.add(field+".url", "is missing")
	}
	out := &webhook{service: compileService(serviceConfig{
		url: w.GetUrl(), credential: w.GetCredential(), timeout: w.GetTimeout(), mode: w.GetFailureMode(), tls: w.GetTls(),
	}, r, field, errs), headers: compileHeaders(w.GetHeaders(), field+".headers", errs)}
	for _, h := range out.headers {
		if h.name == "Authorization" && w.GetCredential() != nil {
			errs.add(field+".headers.Authorization", "is what `credential` is sent as; keep one of them")
		}
	}
	return out
}

type webhookRequest struct {
	Tenant    string            `json:"tenant"`
	Target    string            `json:"target"`
	Direction string            `json:"direction"`
	Method    string            `json:"method"`
	Name      string            `json:"name,omitempty"`
	Principal *webhookPrincipal `json:"principal"`
	Content   []webhookText     `json:"content"`
}

type webhookPrincipal struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

type webhookText struct {
	Path string `json:"path"`
	Text string `json:"text"`
}

type webhookAnswer struct {
	Action  string
	Reason  string
	Content []struct {
		Path string
		Text *string
	}
}

func (w *webhook) judge(ctx context.Context, c *Call, d Direction, texts []guard.Text) ([]*string, error) {
	ask := webhookRequest{Tenant: c.Tenant, Target: c.Target, Direction: d.String(), Method: c.Method, Name: c.Name, Content: make([]webhookText, len(texts))}
	if c.Principal != nil && !c.Principal.Unverified {
		ask.Principal = &webhookPrincipal{strings.ReplaceAll(c.Principal.ID, "\x00", " "), c.Principal.Name}
	}
	places := make(map[string]int, len(texts))
	size := 0
	for i, x := range texts {
		if _, twice := places[x.Path]; twice {
			return nil, &refusal{"a member is given twice"} // an answer could not say which
		}
		places[x.Path] = i
		ask.Content[i] = webhookText{x.Path, x.Value}
		size += len(x.Path) + len(x.Value)
	}
	headers := make(http.Header, len(w.headers))
	for i := range w.headers {
		v, err := w.headers[i].of(c)
		if err != nil {
			return nil, err
		}
		headers[w.headers[i].name] = []string{v}
	}
	var answer webhookAnswer
	if err := w.ask(ctx, headers, ask, 2*size+maxJudgement, &answer); err != nil {
		return nil, err
	}
	switch answer.Action {
	case "pass":
		return nil, nil
	case "reject":
		return nil, &refusal{clip(answer.Reason)}
	case "mask":
	default:
		return nil, fmt.Errorf("the answer's action %q is none of pass, reject and mask", clip(answer.Action))
	}
	if len(answer.Content) == 0 {
		return nil, errors.New("the answer masks, and has no content")
	}
	instead := make([]*string, len(texts))
	for _, x := range answer.Content {
		i, ok := places[x.Path]
		if !ok || x.Text == nil {
			return nil, fmt.Errorf("the answer's content has the path %q, which it was not asked about, or no text for it", clip(x.Path))
		}
		instead[i] = x.Text
	}
	return instead, nil
}

// clip keeps what a service says from filling the log.
func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// moderation asks an endpoint of the form of OpenAI's moderations.
type moderation struct {
	service
	model      string
	categories []string // empty: whatever is flagged
}

const (
	moderationURL   = "https://api.openai.com/v1/moderations"
	moderationModel = "omni-moderation-latest"
)

func compileModeration(m *policyv1.ModerationGuard, r Resolver, field string, errs *problems) judge {
	out := &moderation{model: m.GetModel(), categories: m.GetCategories()}
	if out.model == "" {
		out.model = moderationModel
	}
	at := m.GetUrl()
	if at == "" {
		at = moderationURL
		if m.GetCredential() == nil {
			errs.add(field+".credential", "is missing: %s takes no request without a key", moderationURL)
		}
	}
	for i, c := range out.categories {
		if c == "" {
			errs.add(fmt.Sprintf("%s.categories[%d]", field, i), "is empty")
		}
	}
	out.service = compileService(serviceConfig{url: at, credential: m.GetCredential(), timeout: m.GetTimeout(), mode: m.GetFailureMode()}, r, field, errs)
	return out
}

type moderationRequest struct {
	Model string   `json:"model"`
	Input []string `json:"input"`
}

type moderationAnswer struct {
	Results []struct {
		Flagged    *bool
		Categories map[string]json.RawMessage // true, false, or null for what the model does not know
	}
}

func (m *moderation) judge(ctx context.Context, _ *Call, _ Direction, texts []guard.Text) ([]*string, error) {
	ask := moderationRequest{m.model, make([]string, len(texts))}
	for i, x := range texts {
		ask.Input[i] = x.Value
	}
	var answer moderationAnswer
	if err := m.ask(ctx, nil, ask, maxJudgement+len(texts)*(8<<10), &answer); err != nil {
		return nil, err
	}
	if len(answer.Results) != len(texts) {
		return nil, fmt.Errorf("the answer has %d results for %d texts", len(answer.Results), len(texts))
	}
	for _, r := range answer.Results {
		if r.Flagged == nil {
			return nil, errors.New("the answer has a result without `flagged`")
		}
		if len(m.categories) == 0 && *r.Flagged {
			return nil, &refusal{"flagged"}
		}
		for _, c := range m.categories {
			switch said, ok := r.Categories[c]; {
			case !ok:
				return nil, fmt.Errorf("the answer has no category %q; are `categories` those of the model?", c)
			case string(said) == "true":
				return nil, &refusal{"flagged as " + c}
			}
		}
	}
	return nil, nil
}
