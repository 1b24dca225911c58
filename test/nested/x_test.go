package nested
import ("testing";"net/http";"go.uber.org/goleak")
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
func TestX(t *testing.T) { eachKind(t, func(t *testing.T, start func(*testing.T) string){ a := start(t); r, err := http.Get("http://"+a+"/v2/"); if err != nil { t.Fatal(err)}; r.Body.Close(); t.Log(r.Status); http.DefaultClient.CloseIdleConnections() }) }
