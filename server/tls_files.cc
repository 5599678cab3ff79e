#include "server/tls_files.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <algorithm>
#include <ctime>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/error.h"
#include "base/file.h"
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
constexpr int64_t kMaxPemBytes = 1 << 20;
constexpr size_t kMaxCommonNameBytes = 64;  // ub-common-name of X.509

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
  if (X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1, 0) != 1)
    return TlsError("name a certificate");
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

// nullptr where there is none in PEM.
Certificate ReadCertificate(const std::string& pem) {
  const Memory memory(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  return Certificate(PEM_read_bio_X509(memory.get(), nullptr, nullptr, nullptr));
}
Key ReadKey(const std::string& pem) {
  const Memory memory(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  return Key(PEM_read_bio_PrivateKey(memory.get(), nullptr, nullptr, nullptr));
}

struct Authority {
  Key key;
  Certificate certificate;
};

absl::StatusOr<Authority> LoadAuthority(const std::string& directory) {
  Authority authority;
  ASSIGN_OR_RETURN(const std::string key, ReadFile(JoinPath(directory, "ca.key"), kMaxPemBytes));
  ASSIGN_OR_RETURN(const std::string certificate, ReadFile(JoinPath(directory, "ca.crt"), kMaxPemBytes));
  authority.key = ReadKey(key);
  authority.certificate = ReadCertificate(certificate);
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

absl::StatusOr<std::string> IssueClientCertificate(const std::string& directory, Role role,
                                                   const std::string& name) {
  const std::string role_name(RoleName(role));
  const std::string common_name = absl::StrCat(role_name, ":", name);
  if (!IsCallerName(name) || common_name.size() > kMaxCommonNameBytes) {
    return Error::Field(Reason::kNameInvalid, "--client",
                        absl::StrCat("is for \"", name.substr(0, 100),
                                     "\"; must be ROLE:NAME or ROLE:PROJECT/NAME, names of lower-case ",
                                     "letters, digits and inner '-', at most ", kMaxCommonNameBytes,
                                     " bytes in all: a certificate has room for no more"))
        .ToStatus();
  }
  RETURN_IF_ERROR(MakeDirs(directory));
  // No name has an underscore, so no two names have one file.
  const std::string stem = absl::StrCat(role_name, "-", absl::StrReplaceAll(name, {{"/", "_"}}));
  RETURN_IF_ERROR(Issue(directory, stem, common_name, {{NID_ext_key_usage, "clientAuth"}}));
  return stem;
}

std::vector<std::string> ServerTlsFiles(const std::string& directory) {
  std::vector<std::string> found;
  for (const char* name : {"ca.crt", "ca.key", "server.crt", "server.key"}) {
    if (FileExists(JoinPath(directory, name))) found.push_back(name);
  }
  return found;
}

std::vector<std::string> TlsProblems(const std::string& directory) {
  std::vector<std::string> problems;
  const std::vector<std::string> files = ServerTlsFiles(directory);
  const auto there = [&](const char* name) {
    return std::find(files.begin(), files.end(), name) != files.end();
  };
  std::map<std::string, Certificate> certificates;
  for (const std::string stem : {"ca", "server"}) {
    const std::string crt = stem + ".crt", key = stem + ".key";
    if (there(key.c_str())) {
      struct stat info = {};
      if (stat(JoinPath(directory, key).c_str(), &info) == 0 && (info.st_mode & 077) != 0)
        problems.push_back(key + " can be read by others than its owner; chmod 600 it");
    }
    if (!there(crt.c_str())) {
      if (there(key.c_str())) problems.push_back(crt + " is missing beside its key");
      continue;
    }
    certificates[stem] = ReadCertificate(ReadFile(JoinPath(directory, crt), kMaxPemBytes).value_or(""));
    if (!certificates[stem]) {
      problems.push_back(crt + " holds no certificate");
    } else if (there(key.c_str())) {
      const Key private_key = ReadKey(ReadFile(JoinPath(directory, key), kMaxPemBytes).value_or(""));
      if (!private_key || X509_check_private_key(certificates[stem].get(), private_key.get()) != 1)
        problems.push_back(key + " is not the key of " + crt);
    }
  }
  const Certificate &authority = certificates["ca"], &server = certificates["server"];
  if (authority && server && X509_verify(server.get(), X509_get0_pubkey(authority.get())) != 1)
    problems.push_back("server.crt is not signed by ca.crt");
  ERR_clear_error();
  return problems;
}

namespace {

// 0 also where one of several cannot be read.
int CertificatesIn(const std::string& pem) {
  const Memory memory(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  int count = 0;
  while (Certificate(PEM_read_bio_X509(memory.get(), nullptr, nullptr, nullptr))) ++count;
  const bool to_the_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  return to_the_end ? count : 0;
}

}  // namespace

absl::Status CheckClientAuthority(const std::string& pem) {
  if (CertificatesIn(pem) > 0) return absl::OkStatus();
  return Error::Field(Reason::kSpecInvalid, "--client-ca",
                      "holds no certificate in PEM, or one that is cut off");
}

absl::StatusOr<int64_t> CheckServerCertificate(const std::string& certificate_pem,
                                               const std::string& key_pem, int64_t now_unix_us) {
  const auto bad = [](const char* flag, const std::string& what) {
    return Error::Field(Reason::kSpecInvalid, flag, what).ToStatus();
  };
  const Certificate certificate = ReadCertificate(certificate_pem);
  if (!certificate) return bad("--tls-cert", "holds no certificate in PEM");
  if (CertificatesIn(certificate_pem) == 0)
    return bad("--tls-cert", "has a certificate behind the first that cannot be read; is the file cut off?");
  const Key key = ReadKey(key_pem);
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
