package azure

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	tenant    = "72f988bf-0000-4000-8000-000000000001"
	client    = "1f0c2a50-0000-4000-8000-0123456789ab"
	secret    = "cl1ent-s3cret~of.the-application"
	audience  = "https://containerregistry.azure.net"
	federated = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2ln"
)

// signingKey signs the tokens of the stand-ins.
var signingKey = []byte("of the stand-in alone")

// makeJWT signs claims with HS256.
func makeJWT(claims map[string]any) string {
	body, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	enc := base64.RawURLEncoding
	head := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(body)
	mac := hmac.New(sha256.New, signingKey)
	mac.Write([]byte(head))
	return head + "." + enc.EncodeToString(mac.Sum(nil))
}

// openJWT returns the claims of a token that makeJWT made and that has not ended.
func openJWT(token string, now time.Time) (map[string]any, bool) {
	head, sig, ok := cutLast(token, ".")
	if !ok {
		return nil, false
	}
	mac := hmac.New(sha256.New, signingKey)
	mac.Write([]byte(head))
	raw, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil || !hmac.Equal(raw, mac.Sum(nil)) {
		return nil, false
	}
	_, body, _ := strings.Cut(head, ".")
	raw, err = base64.RawURLEncoding.DecodeString(body)
	var claims map[string]any
	if err != nil || json.Unmarshal(raw, &claims) != nil {
		return nil, false
	}
	exp, _ := claims["exp"].(float64)
	return claims, now.Before(time.Unix(int64(exp), 0))
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// entra is a stand-in for Microsoft Entra ID and for the endpoint that hands out managed identities.
type entra struct {
	*httptest.Server // the authority, https
	local            *httptest.Server
	now              func() time.Time
	certificate      *x509.Certificate
	certificatePath  string
	tokenFile        string

	mu     sync.Mutex
	asked  []string // grants that were asked for
	fail   int      // HTTP status of every answer; 0 works
	seenBy []string // Authorization headers that came here
}

func newEntra(t *testing.T, now func() time.Time) *entra {
	t.Helper()
	e := &entra{now: now}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", e.configuration)
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", e.token)
	mux.HandleFunc("GET /adfs/.well-known/openid-configuration", e.federation)
	mux.HandleFunc("POST /{tenant}/oauth2/token", e.token)
	e.Server = httptest.NewTLSServer(mux)
	t.Cleanup(e.Close)
	local := http.NewServeMux()
	local.HandleFunc("GET /msi/token", e.managed)
	e.local = httptest.NewServer(local)
	t.Cleanup(e.local.Close)
	e.makeCertificate(t)
	e.tokenFile = filepath.Join(t.TempDir(), "federated")
	if err := os.WriteFile(e.tokenFile, []byte(federated), 0o600); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *entra) makeCertificate(t *testing.T) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "application"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if e.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	e.certificatePath = filepath.Join(t.TempDir(), "application.pem")
	if err := os.WriteFile(e.certificatePath, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (e *entra) note(r *http.Request, what string) (fail int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, what)
	if a := r.Header.Get("Authorization"); a != "" {
		e.seenBy = append(e.seenBy, a)
	}
	return e.fail
}

func (e *entra) configuration(w http.ResponseWriter, r *http.Request) {
	base := e.URL + "/" + r.PathValue("tenant")
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer": base + "/v2.0", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + "/oauth2/v2.0/token",
	})
}

// federation is AD FS, which signs in to an Azure Stack Hub that is disconnected; it knows no tenants.
func (e *entra) federation(w http.ResponseWriter, _ *http.Request) {
	base := e.URL + "/adfs"
	writeJSON(w, http.StatusOK, map[string]any{"issuer": base, "authorization_endpoint": base + "/oauth2/authorize", "token_endpoint": base + "/oauth2/token"})
}

// token is the client credentials flow of OAuth 2.0 as Entra documents it.
func (e *entra) token(w http.ResponseWriter, r *http.Request) {
	if fail := e.note(r, "client_credentials"); fail != 0 {
		http.Error(w, "the stand-in fails", fail)
		return
	}
	refuse := func(code, text string) {
		writeJSON(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client", "error_description": code + ": " + text})
	}
	form := func(name string) string { return r.FormValue(name) }
	switch {
	case r.PathValue("tenant") != tenant && r.PathValue("tenant") != "adfs":
		refuse("AADSTS90002", "Tenant not found.")
	case form("grant_type") != "client_credentials" || form("client_id") != client:
		refuse("AADSTS700016", "Application was not found in the directory.")
	case !slices.Contains(strings.Fields(form("scope")), audience+"/.default"):
		refuse("AADSTS70011", "The provided value for the input parameter 'scope' is not valid.")
	case form("client_secret") == secret || form("client_assertion") == federated || e.signed(form("client_assertion")):
		writeJSON(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": 3600, "access_token": e.accessToken(client)})
	default:
		refuse("AADSTS7000215", "Invalid client secret provided.")
	}
}

// signed reports whether an assertion was signed with the application's certificate.
func (e *entra) signed(assertion string) bool {
	head, sig, ok := cutLast(assertion, ".")
	if !ok {
		return false
	}
	raw, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil {
		return false
	}
	sum := sha256.Sum256([]byte(head))
	key := e.certificate.PublicKey.(*rsa.PublicKey)
	return rsa.VerifyPSS(key, crypto.SHA256, sum[:], raw, nil) == nil || rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], raw) == nil
}

// managed is the endpoint of a managed identity in the form of App Service and Arc.
func (e *entra) managed(w http.ResponseWriter, r *http.Request) {
	if fail := e.note(r, "managed"); fail != 0 {
		http.Error(w, "the stand-in fails", fail)
		return
	}
	q := r.URL.Query()
	switch {
	case r.Header.Get("X-IDENTITY-HEADER") != "local":
		http.Error(w, `{"message":"no header"}`, http.StatusUnauthorized)
	case q.Get("resource") != audience:
		http.Error(w, `{"message":"no such resource"}`, http.StatusBadRequest)
	case q.Get("client_id") != "" && q.Get("client_id") != client:
		http.Error(w, `{"error":"invalid_request","error_description":"Identity not found"}`, http.StatusBadRequest)
	default:
		writeJSON(w, http.StatusOK, map[string]any{
			"access_token": e.accessToken(client), "expires_on": fmt.Sprint(e.now().Add(time.Hour).Unix()), "resource": audience, "token_type": "Bearer",
		})
	}
}

func (e *entra) accessToken(who string) string {
	return makeJWT(map[string]any{"iss": e.URL + "/" + tenant + "/", "aud": audience, "appid": who, "tid": tenant, "exp": e.now().Add(24 * time.Hour).Unix()})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func tlsConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}
