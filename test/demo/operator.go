package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/test/edgesim"
)

// operator is who works in the cloud: it speaks IoT Hub's service API, as `az iot hub` does.
type operator struct {
	device string
	host   string // host:port
	name   string // of the resource
	policy string
	key    []byte
	client *http.Client
}

const (
	serviceVersion = "2021-04-12"
	maxAnswer      = 1 << 20
	tokenLife      = time.Hour
)

func newOperator(d *edgesim.Device, device string) *operator {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.TrustBundle())
	o := &operator{device: device, host: d.HTTPSAddr(), client: &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
	}}
	for part := range strings.SplitSeq(d.ServiceConnectionString(), ";") {
		switch key, value, _ := strings.Cut(part, "="); key {
		case "HostName":
			o.name = value
		case "SharedAccessKeyName":
			o.policy = value
		case "SharedAccessKey":
			o.key, _ = base64.StdEncoding.DecodeString(value) // a key that is none does not sign: 401 says so
		}
	}
	return o
}

func (o *operator) close() { o.client.CloseIdleConnections() }

// token is a shared access signature.
func (o *operator) token() string {
	resource := url.QueryEscape(o.name)
	expiry := fmt.Sprint(time.Now().Add(tokenLife).Unix())
	mac := hmac.New(sha256.New, o.key)
	_, _ = mac.Write([]byte(resource + "\n" + expiry)) // a hash takes everything
	signature := url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%s&skn=%s", resource, signature, expiry, o.policy)
}

// do makes a request about the registry's module.
func (o *operator) do(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	target := fmt.Sprintf("https://%s/twins/%s/modules/%s%s?api-version=%s", o.host, o.device, moduleName, path, serviceVersion)
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", o.token())
	req.Header.Set("Content-Type", "application/json")
	resp, err := o.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("IoT Hub: %s %s: %s: %s", method, path, resp.Status, answer)
	}
	return json.Unmarshal(answer, out)
}

// invoke calls a direct method, as `az iot hub invoke-module-method` does.
func (o *operator) invoke(ctx context.Context, method string, payload, into any) error {
	var out struct {
		Status  int             `json:"status"`
		Payload json.RawMessage `json:"payload"`
	}
	in := map[string]any{"methodName": method, "payload": payload, "responseTimeoutInSeconds": 30}
	if err := o.do(ctx, http.MethodPost, "/methods", in, &out); err != nil {
		return err
	}
	if out.Status != http.StatusOK {
		return fmt.Errorf("%s answers %d: %s", method, out.Status, out.Payload)
	}
	return json.Unmarshal(out.Payload, into)
}

// moduleTwin is the part of a module twin that the demo looks at.
type moduleTwin struct {
	Properties struct {
		Desired struct {
			Version int64 `json:"$version"`
		} `json:"desired"`
		Reported map[string]json.RawMessage `json:"reported"`
	} `json:"properties"`
}

// ack is how a module answers for a section of its desired properties.
type ack struct {
	Value any    `json:"value"`
	Code  int    `json:"ac"`
	Seen  int64  `json:"av"`
	Text  string `json:"ad"`
}

// update changes desired properties, as `az iot hub module-twin update` does, and waits until the module has
// acknowledged the sections that it names.
func (o *operator) update(ctx context.Context, desired map[string]any) (map[string]ack, error) {
	var twin moduleTwin
	in := map[string]any{"properties": map[string]any{"desired": desired}}
	if err := o.do(ctx, http.MethodPatch, "", in, &twin); err != nil {
		return nil, err
	}
	want := twin.Properties.Desired.Version
	tick := time.NewTicker(frame)
	defer tick.Stop()
	for {
		twin = moduleTwin{}
		if err := o.do(ctx, http.MethodGet, "", nil, &twin); err != nil {
			return nil, err
		}
		acks, done := map[string]ack{}, true
		for section := range desired {
			var a ack
			if raw, ok := twin.Properties.Reported[section]; ok {
				if err := json.Unmarshal(raw, &a); err != nil {
					return nil, err
				}
			}
			acks[section] = a
			done = done && a.Seen == want
		}
		if done {
			return acks, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the acknowledgement of version %d: %w", want, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// The same with a file in place of the twin.

func (v *device) document() string { return filepath.Join(v.Dir, "registry.json") }

// write puts the document in place, in one step, as a running registry sees it.
func (v *device) write() error {
	body, err := json.MarshalIndent(v.desired, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(v.document()+".new", body, 0o600); err != nil {
		return err
	}
	return os.Rename(v.document()+".new", v.document())
}

// edit merges a change into the file and waits until it is in force.
func (v *device) edit(ctx context.Context, change map[string]any) error {
	before, err := v.Status(ctx)
	if err != nil {
		return err
	}
	merge(v.desired, change)
	if err := v.write(); err != nil {
		return err
	}
	return v.Until(ctx, "the change is in force", func(ctx context.Context) (bool, error) {
		s, err := v.Status(ctx)
		return err == nil && s.Configuration.Applied.After(before.Configuration.Applied), err
	})
}

// merge merges a patch as IoT Hub does: null removes.
func merge(into, patch map[string]any) {
	for name, value := range patch {
		below, isObject := value.(map[string]any)
		have, hasObject := into[name].(map[string]any)
		switch {
		case value == nil:
			delete(into, name)
		case isObject && hasObject:
			merge(have, below)
		default:
			into[name] = value
		}
	}
}

// readiness asks whether what a manifest deploys can be pulled here: by direct method, or on the device itself.
func (v *device) readiness(ctx context.Context, twins bool, manifest []byte) (registry.Readiness, error) {
	var r registry.Readiness
	if twins {
		return r, v.operator.invoke(ctx, "getReadiness", map[string]any{"manifest": json.RawMessage(manifest)}, &r)
	}
	file := filepath.Join(v.Dir, "deployment.json")
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		return r, err
	}
	out, err := exec.CommandContext(ctx, v.Binary, "readiness", "--data-dir", v.DataDir(), "--manifest", file, "--output", "json").Output()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return r, err
	}
	return r, json.Unmarshal(out, &r) // a manifest that is not ready is an exit code, too
}
