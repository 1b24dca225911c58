package edgesim

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// sasToken is a parsed SharedAccessSignature. Its signature covers the resource as it was written.
type sasToken struct {
	rawResource string
	resource    string
	signature   []byte
	rawExpiry   string
	expiry      time.Time
	keyName     string
}

func parseSAS(s string) (sasToken, error) {
	body, ok := strings.CutPrefix(s, "SharedAccessSignature ")
	if !ok {
		return sasToken{}, errors.New("not a SharedAccessSignature")
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(body, "&") {
		name, value, _ := strings.Cut(part, "=")
		fields[strings.TrimSpace(name)] = value
	}
	t := sasToken{rawResource: fields["sr"], rawExpiry: fields["se"]}
	var err error
	if t.resource, err = url.QueryUnescape(t.rawResource); err != nil || t.resource == "" {
		return sasToken{}, errors.New("token without a resource")
	}
	sig, err := url.QueryUnescape(fields["sig"])
	if err != nil {
		return sasToken{}, errors.New("token with a bad signature field")
	}
	if t.signature, err = base64.StdEncoding.DecodeString(sig); err != nil {
		return sasToken{}, errors.New("token with a bad signature field")
	}
	seconds, err := strconv.ParseInt(t.rawExpiry, 10, 64)
	if err != nil {
		return sasToken{}, errors.New("token with a bad expiry")
	}
	t.expiry = time.Unix(seconds, 0)
	if t.keyName, err = url.QueryUnescape(fields["skn"]); err != nil {
		return sasToken{}, errors.New("token with a bad key name")
	}
	return t, nil
}

// signedBy reports whether key made the signature.
func (t sasToken) signedBy(key []byte) bool {
	return hmac.Equal(t.signature, sign(key, []byte(t.rawResource+"\n"+t.rawExpiry)))
}

func sign(key, data []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(data)
	return m.Sum(nil)
}

// clientInfo is what an MQTT user name says.
type clientInfo struct{ device, module, product string }

// parseUsername reads host/device[/module]/?properties, with or without the question mark, as edgeHub does: the host
// is not looked at, api-version must be there.
func parseUsername(s string) (clientInfo, error) {
	bad := fmt.Errorf("username %s does not contain valid values", s)
	segments := strings.Split(s, "/")
	if len(segments) != 3 && len(segments) != 4 {
		return clientInfo{}, bad
	}
	last := strings.TrimPrefix(segments[len(segments)-1], "?")
	c := clientInfo{device: strings.TrimSpace(segments[1])}
	if len(segments) == 4 {
		c.module = strings.TrimSpace(segments[2])
	}
	properties := map[string]string{}
	for part := range strings.SplitSeq(strings.TrimSpace(last), "&") {
		name, value, _ := strings.Cut(part, "=")
		if _, twice := properties[name]; twice {
			continue
		}
		plain, err := url.PathUnescape(value)
		if err != nil {
			plain = value
		}
		properties[name] = plain
	}
	if strings.TrimSpace(properties["api-version"]) == "" {
		return clientInfo{}, fmt.Errorf("username %s does not contain a valid Api-version property", s)
	}
	if c.device == "" {
		return clientInfo{}, fmt.Errorf("username %s does not contain a valid device ID", s)
	}
	c.product = properties["DeviceClientType"]
	return c, nil
}

// authenticate checks a CONNECT; it returns the module and when its token ends.
func (d *Device) authenticate(clientID, username, password string) (module string, expiry time.Time, err error) {
	info, err := parseUsername(username)
	if err != nil {
		return "", time.Time{}, err
	}
	if info.module == "" || clientID != info.device+"/"+info.module {
		return "", time.Time{}, fmt.Errorf("client id %q is not the user name's", clientID)
	}
	expiry, err = d.checkModuleToken(info.device, info.module, password)
	return info.module, expiry, err
}

// checkModuleToken checks a module's SAS token, by MQTT or by HTTPS.
func (d *Device) checkModuleToken(device, module, token string) (time.Time, error) {
	t, err := parseSAS(token)
	if err != nil {
		return time.Time{}, err
	}
	m, ok := d.module(module)
	if !ok || device != d.opts.DeviceID {
		return time.Time{}, fmt.Errorf("no identity %s/%s", device, module)
	}
	host, path, _ := strings.Cut(t.resource, "/")
	if !strings.EqualFold(host, d.opts.Hub) && !strings.EqualFold(host, d.opts.Hostname) {
		return time.Time{}, fmt.Errorf("token for the host %s", host)
	}
	if path != "devices/"+device+"/modules/"+module {
		return time.Time{}, fmt.Errorf("token for %s", t.resource)
	}
	if !t.signedBy(m.key) {
		return time.Time{}, errors.New("wrong signature")
	}
	if !d.now().Before(t.expiry) {
		return time.Time{}, fmt.Errorf("token expired at %s", t.expiry.UTC().Format(time.RFC3339))
	}
	return t.expiry, nil
}

// checkServiceToken checks a SAS token of the hub's service API.
func (d *Device) checkServiceToken(token string) error {
	t, err := parseSAS(token)
	if err != nil {
		return err
	}
	host, _, _ := strings.Cut(t.resource, "/")
	switch {
	case t.keyName != serviceKeyName:
		return fmt.Errorf("unknown key name %q", t.keyName)
	case !strings.EqualFold(host, d.opts.Address) && !strings.EqualFold(host, d.opts.Hub):
		return fmt.Errorf("token for the host %s", host)
	case !t.signedBy(d.serviceKey):
		return errors.New("wrong signature")
	case !d.opts.Now().Before(t.expiry): // the cloud's clock is right
		return errors.New("token expired")
	}
	return nil
}
