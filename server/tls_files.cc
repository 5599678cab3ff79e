#include "server/tls_files.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/id.h"
#include "base/status.h"

namespace nibble::server {
namespace {

struct Free {
  void operator()(EVP_PKEY* p) const { EVP_PKEY_free(p); }
  void operator()(X509* p) const { X509_free(p); }
  void operator()(BIO* p) const { BIO_free(p); }
  void operator()(X509_EXTENSION* p) const { X509_EXTENSION_free(p); }
};
using Key = std::unique_ptr<EVP_PKEY, Free>;
using Certificate = std::unique_ptr<X509, Free>;
using Memory = std::unique_ptr<BIO, Free>;

constexpr int64_t kDaySeconds = 24 * 3600;
constexpr int64_t kAuthorityDays = 3650;
constexpr int64_t kCertificateDays = 825;

absl::Status TlsError(std::string_view what) {
  return Error(Reason::kInternal,
               absl::StrCat("OpenSSL could not ", absl::string_view(what.data(), what.size())));
}

Key NewKey() { return Key(EVP_EC_gen("P-256")); }

bool AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const std::unique_ptr<X509_EXTENSION, Free> extension(
      X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  return extension && X509_add_ext(certificate, extension.get(), -1) == 1;
}

// `issuer` nullptr = self-signed authority.
absl::StatusOr<Certificate> NewCertificate(EVP_PKEY* key, const std::string& common_name, X509* issuer,
                                           EVP_PKEY* issuer_key, int64_t days,
                                           const std::vector<std::pair<int, std::string>>& extensions) {
  Certificate certificate(X509_new());
  X509_set_version(certificate.get(), 2);
  unsigned char serial[16];
  if (RAND_bytes(serial, sizeof serial) != 1) return TlsError("make a serial number");
  serial[0] &= 0x7f;
  BIGNUM* number = BN_bin2bn(serial, sizeof serial, nullptr);
  BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate.get()));
  BN_free(number);
  // An hour back: clocks of a small cluster seldom agree.
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), days * kDaySeconds);
  X509_NAME* name = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1, 0);
  X509* signer = issuer ? issuer : certificate.get();
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(signer));
  X509_set_pubkey(certificate.get(), key);
  for (const auto& [nid, value] : extensions) {
    if (!AddExtension(certificate.get(), signer, nid, value)) {
      return TlsError(absl::StrCat("set the extension ", value));
    }
  }
  if (X509_sign(certificate.get(), issuer_key ? issuer_key : key, EVP_sha256()) == 0) {
    return TlsError("sign a certificate");
  }
  return certificate;
}

std::string Content(BIO* memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory, &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::Status WriteKey(const std::string& path, EVP_PKEY* key) {
  const Memory memory(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_PrivateKey(memory.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return TlsError("write a key");
  }
  const mode_t old = umask(077);  // before the file exists: it is never readable by others
  const absl::Status status = WriteFileAtomic(path, Content(memory.get()));
  umask(old);
  return status;
}

absl::Status WriteCertificate(const std::string& path, X509* certificate) {
  const Memory memory(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(memory.get(), certificate) != 1) return TlsError("write a certificate");
  return WriteFileAtomic(path, Content(memory.get()));
}

struct Authority {
  Key key;
  Certificate certificate;
};

absl::StatusOr<Authority> LoadAuthority(const std::string& directory) {
  Authority authority;
  ASSIGN_OR_RETURN(const std::string key, ReadFile(JoinPath(directory, "ca.key"), 1 << 20));
  ASSIGN_OR_RETURN(const std::string certificate, ReadFile(JoinPath(directory, "ca.crt"), 1 << 20));
  const Memory key_memory(BIO_new_mem_buf(key.data(), static_cast<int>(key.size())));
  const Memory memory(BIO_new_mem_buf(certificate.data(), static_cast<int>(certificate.size())));
  authority.key.reset(PEM_read_bio_PrivateKey(key_memory.get(), nullptr, nullptr, nullptr));
  authority.certificate.reset(PEM_read_bio_X509(memory.get(), nullptr, nullptr, nullptr));
  if (!authority.key || !authority.certificate) {
    return TlsError(absl::StrCat("read ca.key and ca.crt in ", directory));
  }
  return authority;
}

absl::StatusOr<Authority> EnsureAuthority(const std::string& directory) {
  if (FileExists(JoinPath(directory, "ca.key"))) return LoadAuthority(directory);
  Authority authority;
  authority.key = NewKey();
  if (!authority.key) return TlsError("make a key");
  ASSIGN_OR_RETURN(authority.certificate,
                   NewCertificate(authority.key.get(), "nibble authority", nullptr, nullptr,
                                  kAuthorityDays,
                                  {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                                   {NID_key_usage, "critical,keyCertSign,cRLSign"},
                                   {NID_subject_key_identifier, "hash"}}));
  RETURN_IF_ERROR(WriteKey(JoinPath(directory, "ca.key"), authority.key.get()));
  RETURN_IF_ERROR(WriteCertificate(JoinPath(directory, "ca.crt"), authority.certificate.get()));
  return authority;
}

bool IsAddress(const std::string& host) {
  unsigned char bytes[16];
  return inet_pton(AF_INET, host.c_str(), bytes) == 1 || inet_pton(AF_INET6, host.c_str(), bytes) == 1;
}

bool IsHostName(const std::string& host) {
  if (host.empty() || host.size() > 253) return false;
  for (const char c : host) {
    const bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '-' || c == '.' || c == '_' || c == '*';
    if (!ok) return false;
  }
  return true;
}

absl::Status Issue(const std::string& directory, const std::string& stem, const std::string& common_name,
                   std::vector<std::pair<int, std::string>> extensions) {
  ASSIGN_OR_RETURN(const Authority authority, EnsureAuthority(directory));
  const Key key = NewKey();
  if (!key) return TlsError("make a key");
  extensions.push_back({NID_basic_constraints, "critical,CA:FALSE"});
  extensions.push_back({NID_key_usage, "critical,digitalSignature"});
  ASSIGN_OR_RETURN(const Certificate certificate,
                   NewCertificate(key.get(), common_name, authority.certificate.get(),
                                  authority.key.get(), kCertificateDays, extensions));
  RETURN_IF_ERROR(WriteKey(JoinPath(directory, stem + ".key"), key.get()));
  return WriteCertificate(JoinPath(directory, stem + ".crt"), certificate.get());
}

}  // namespace

absl::Status InitTls(const std::string& directory, const std::vector<std::string>& hosts) {
  std::string names;
  for (const std::string& host : hosts) {
    if (!IsAddress(host) && !IsHostName(host)) {
      return Error::Field(Reason::kNameInvalid, "host",
                          absl::StrCat("\"", host, "\" is neither a host name nor an address"));
    }
    absl::StrAppend(&names, names.empty() ? "" : ",", IsAddress(host) ? "IP:" : "DNS:", host);
  }
  if (names.empty()) return Error::Field(Reason::kNameInvalid, "host", "is missing; name at least one");
  RETURN_IF_ERROR(MakeDirs(directory));
  return Issue(directory, "server", "nibble-server",
               {{NID_subject_alt_name, names}, {NID_ext_key_usage, "serverAuth"}});
}

absl::Status IssueClientCertificate(const std::string& directory, Role role, const std::string& name) {
  if (!IsValidId(name)) {
    return Error::Field(Reason::kNameInvalid, "client",
                        "must be lower-case letters, digits and '-', at most 63");
  }
  RETURN_IF_ERROR(MakeDirs(directory));
  const std::string role_name(RoleName(role));
  return Issue(directory, absl::StrCat(role_name, "-", name), absl::StrCat(role_name, ":", name),
               {{NID_ext_key_usage, "clientAuth"}});
}

absl::StatusOr<int64_t> CheckServerCertificate(const std::string& certificate_pem,
                                               const std::string& key_pem, int64_t now_unix_us) {
  const auto bad = [](const char* flag, const std::string& what) {
    return Error::Field(Reason::kSpecInvalid, flag, what).ToStatus();
  };
  const Memory memory(
      BIO_new_mem_buf(certificate_pem.data(), static_cast<int>(certificate_pem.size())));
  const Certificate certificate(PEM_read_bio_X509(memory.get(), nullptr, nullptr, nullptr));
  if (!certificate) return bad("--tls-cert", "holds no certificate in PEM");
  const Memory key_memory(BIO_new_mem_buf(key_pem.data(), static_cast<int>(key_pem.size())));
  const Key key(PEM_read_bio_PrivateKey(key_memory.get(), nullptr, nullptr, nullptr));
  if (!key) return bad("--tls-key", "holds no key in PEM, or one that asks for a password");
  if (X509_check_private_key(certificate.get(), key.get()) != 1)
    return bad("--tls-key", "is not the key of --tls-cert; give the two that were made together");
  const auto unix_us = [](const ASN1_TIME* time) {
    struct tm parts = {};
    return ASN1_TIME_to_tm(time, &parts) == 1 ? int64_t{timegm(&parts)} * 1'000'000 : 0;
  };
  const int64_t end_us = unix_us(X509_get0_notAfter(certificate.get()));
  if (end_us <= now_unix_us) {
    return bad("--tls-cert",
               absl::StrCat("ended ", (now_unix_us - end_us) / 1'000'000 / kDaySeconds,
                            " days ago; renew it (nibble-server init-tls keeps the authority)"));
  }
  if (unix_us(X509_get0_notBefore(certificate.get())) > now_unix_us)
    return bad("--tls-cert", "is not valid yet; look at the clock of this machine");
  return end_us;
}

}  // namespace nibble::server
